"""What a machine is shown of what was deployed, and what of it matters to one that runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from hive_core.declarable import McpServer
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import Manifest
from hive_core.host import releases
from hive_core.host.releases import Releases

FIRST, SECOND = "a" * 40, "b" * 40
BOB = AgentRow("bob", Wanted.RUNNING, False, 0.0, deployed_sha=FIRST, deployed_tag="deployed/1")
PROMPTED = Manifest(prompt="task.md")
SERVED = Manifest(mcp_servers={"files": McpServer(command="x")})


def lay_out(root: Path, sha: str, **files: str) -> Path:
    config = root / "bob" / sha / "config"
    config.mkdir(parents=True)
    (config / "agent.toml").write_text(sha)
    for name, text in files.items():
        (config / f"{name}.md").write_text(text)
    (config.parent / "extra-mcp.json").write_text("{}")
    return config


def second(row: AgentRow, manifest: Manifest | None = None) -> AgentRow:
    return replace(row, deployed_sha=SECOND, manifest=manifest or row.manifest)


def test_its_paths_stay_the_same_from_deploy_to_deploy(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST, task="one")
    lay_out(tmp_path, SECOND, task="two")
    shown = Releases(tmp_path)

    assert shown.show(BOB)
    assert (tmp_path / "bob/config/task.md").read_text() == "one"
    assert shown.show(second(BOB))
    assert shown.show(second(BOB))
    assert (tmp_path / "bob/config/task.md").read_text() == "two"
    assert (tmp_path / "bob/extra-mcp.json").read_text() == "{}"
    assert {path.name for path in (tmp_path / "bob").iterdir()} == {FIRST, SECOND, *releases.SHOWN}
    assert (tmp_path / "bob/current").readlink() == Path(SECOND), "a machine sees it at another place"


def test_what_was_not_laid_out_is_not_shown(tmp_path: Path) -> None:
    shown = Releases(tmp_path)

    assert not shown.show(BOB)
    assert not shown.show(replace(BOB, deployed_sha=None))
    assert not (tmp_path / "bob").exists()


def test_files_that_nothing_reads_do_not_matter(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST, task="one", other="1")
    lay_out(tmp_path, SECOND, task="one", other="2")
    shown = Releases(tmp_path)
    prompted, served = replace(BOB, manifest=PROMPTED), replace(BOB, manifest=SERVED)

    assert shown.used(BOB) == ""
    assert shown.used(prompted) == shown.used(second(prompted)) != ""
    assert shown.used(served) != shown.used(second(served))


def test_another_prompt_or_mode_matters(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST, task="one")
    lay_out(tmp_path, SECOND, task="two")
    third = lay_out(tmp_path, "c" * 40, task="one")
    (third / "task.md").chmod(0o755)
    prompted = replace(BOB, manifest=PROMPTED)
    used = {Releases(tmp_path).used(replace(prompted, deployed_sha=sha)) for sha in (FIRST, SECOND, "c" * 40)}

    assert len(used) == 3


def test_what_the_agent_toml_says_elsewhere_does_not_count_as_a_file(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST)
    lay_out(tmp_path, SECOND)
    served = replace(BOB, manifest=SERVED)

    assert Releases(tmp_path).used(served) == Releases(tmp_path).used(second(served))


def test_a_release_that_is_missing_stops_a_start_only_where_it_is_used(tmp_path: Path) -> None:
    shown = Releases(tmp_path)

    assert shown.used(BOB) == ""
    for manifest in (PROMPTED, SERVED):
        with pytest.raises(CannotStart, match="cannot start bob: what was deployed of it is missing"):
            shown.used(replace(BOB, manifest=manifest))
    lay_out(tmp_path, FIRST)
    with pytest.raises(CannotStart, match=r"its prompt, task\.md, is no file"):
        shown.used(replace(BOB, manifest=PROMPTED))


def test_a_link_in_a_release_is_not_followed(tmp_path: Path) -> None:
    config = lay_out(tmp_path, FIRST)
    (config / "task.md").symlink_to("/etc/passwd")

    with pytest.raises(CannotStart):
        Releases(tmp_path).used(replace(BOB, manifest=PROMPTED))
    with pytest.raises(CannotStart):
        Releases(tmp_path).used(replace(BOB, manifest=SERVED))


def test_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "MAX_FILES", 2)
    lay_out(tmp_path, FIRST, a="1", b="2", c="3")

    with pytest.raises(CannotStart, match="it is too much"):
        Releases(tmp_path).used(replace(BOB, manifest=SERVED))
