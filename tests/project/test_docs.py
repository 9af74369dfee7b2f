import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from hive_core.handlers.routes import ROUTES
from hive_core.wire import agent, host
from hive_core.wire.errors import ErrorCode

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protocol", ROOT / "docs/generate_protocol.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_protocol_document_is_what_the_code_says(generator: ModuleType) -> None:
    document = (ROOT / "docs/protocol.md").read_text()

    if generator.render(document) != document:
        pytest.fail(
            f"docs/protocol.md is out of date: run  {generator.COMMAND}  and read the difference",
            pytrace=False,
        )


def test_every_request_has_a_result_and_both_are_in_the_document(generator: ModuleType) -> None:
    requests = {*get_args(agent.AnyRequest), *get_args(host.AnyRequest)}
    document = (ROOT / "docs/protocol.md").read_text()

    assert requests <= ROUTES.keys()
    for request in requests:
        assert f"\n| `{generator.tag_of(request)}` | " in document


def test_every_error_code_and_envelope_is_explained(generator: ModuleType) -> None:
    assert generator.WHEN.keys() == set(ErrorCode)
    assert host.COMMANDS.keys() >= generator.ORIGINAL_VERBS


def test_a_part_that_is_missing_or_unknown_is_told(generator: ModuleType) -> None:
    with pytest.raises(ValueError, match="the document has the parts"):
        generator.render("<!-- generated: nothing -->\n<!-- end -->\n")


def anchors(document: Path) -> set[str]:
    """Where links may lead: headings as the usual forges spell them, and explicit ids."""
    text = document.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    broken = []
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)

    assert broken == []
