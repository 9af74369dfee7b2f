"""The environment of a machine's harness: what is given arrives as it is, and nothing of ours is overridden."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Harness
from hive_core.declarable import McpServer
from hive_core.domain.manifest import Manifest
from hive_core.host.machine_environment import REPOSITORIES, BadEnvironment, gather, parse, render

names = st.from_regex(r"H_[A-Za-z0-9_]{0,20}", fullmatch=True)  # none that a shell itself uses
values = st.text(
    st.characters(min_codepoint=0x20, exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029")
)


@given(st.dictionaries(names, values))
def test_what_is_rendered_reads_back_as_a_shell_would(environment: dict[str, str]) -> None:
    script = render(environment) + "".join(f'printf "%s\\0" "${name}"\n' for name in sorted(environment))

    said = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={}).stdout

    assert said.decode().split("\0")[:-1] == [environment[name] for name in sorted(environment)]


def test_only_the_manager_is_told_where_the_repositories_are() -> None:
    harness = Harness(environment={"HIVE_META": "/elsewhere"})

    assert gather("manager", "/state", harness).items() >= REPOSITORIES.items()
    assert gather("bob", "/state", Harness()).keys().isdisjoint(REPOSITORIES)


def test_what_is_ours_wins(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("HIVE_LABEL=other\nexport KEY='a b'\n\n; comment\nURL = http://x?a=b \n")

    environment = gather("bob", "/state", Harness(environment={"KEY": "no"}, environment_file=str(file)))

    assert environment["HIVE_LABEL"] == "bob"
    assert environment["KEY"] == "a b"
    assert environment["URL"] == "http://x?a=b"
    assert environment["HIVE_PROVIDER"] == "scripted"
    assert "HIVE_DEFAULT_MODEL" not in environment


def test_what_was_deployed_wins_over_the_hive_and_its_secrets_over_that(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("TOKEN=secret\n")
    harness = Harness(model="small", environment={"A": "hive", "B": "hive"}, environment_file=str(file))
    manifest = Manifest(
        provider="claude",
        model="large",
        prompt="task.md",
        environment={"B": "agent", "TOKEN": "agent"},
        mcp_servers={"files": McpServer(command="x")},
    )

    environment = gather("bob", "/state", harness, manifest)

    wanted = {
        "A": "hive",
        "B": "agent",
        "TOKEN": "secret",
        "HIVE_PROVIDER": "claude",
        "HIVE_DEFAULT_MODEL": "large",
        "HIVE_PROMPT_FILE": "/etc/hyperhive/release/config/task.md",
        "HIVE_EXTRA_MCP": "/etc/hyperhive/release/extra-mcp.json",
        # What the secrets say of a name that is declared, too, is for the harness alone.
        "HIVE_PASS_ON": "B",
    }
    assert environment.items() >= wanted.items()
    only_then = {"HIVE_PROMPT_FILE", "HIVE_EXTRA_MCP", "HIVE_PASS_ON"}
    assert gather("bob", "/state", harness).keys().isdisjoint(only_then)


@pytest.mark.parametrize("harness", [{"A=B": "x"}, {"": "x"}, {"A B": "x"}, {"A": "x\x00y"}, {"A": "\x1b"}])
def test_what_cannot_be_an_environment_is_refused(harness: dict[str, str]) -> None:
    with pytest.raises(BadEnvironment):
        gather("bob", "/state", Harness(environment=harness))


@pytest.mark.parametrize("text", ["nonsense", "1A=x", "=x", "A B=x"])
def test_a_line_that_is_no_variable_is_named(text: str) -> None:
    with pytest.raises(BadEnvironment, match="line 2"):
        parse(f"A=b\n{text}\n")


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"\xff", "not UTF-8"), (b"#" * 70_000, "over")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "secrets"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(BadEnvironment, match=rf"secrets.*{why}"):
        gather("bob", "/state", Harness(environment_file=str(path)))
