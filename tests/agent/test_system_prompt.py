import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hive_agent.config import Config
from hive_agent.system_prompt import MAX_TASK_BYTES, read_task, render_system_prompt
from hive_core.handlers.deps import Role
from hive_core.serve.mcp_tools import tools_for


@pytest.fixture
def config(config: Config) -> Config:
    return replace(config, label="alice")


def tools_in(prompt: str) -> set[str]:
    return set(re.findall(r"mcp__hyperhive__(\w+)", prompt))


def test_it_names_the_agent_and_all_of_its_tools(config: Config) -> None:
    prompt = render_system_prompt(config)

    assert prompt.startswith("You are alice, an agent of a hive")
    assert "{" not in prompt
    assert tools_in(prompt) == tools_for(Role.AGENT).keys()


@pytest.mark.parametrize(
    ("told", "said"), [("she/her", "she/her"), ("", "they/them"), ("{label}", "{label}")]
)
def test_it_knows_how_to_speak_of_the_operator(config: Config, told: str, said: str) -> None:
    prompt = render_system_prompt(replace(config, operator_pronouns=told))

    assert f"an operator, a person ({said}), who runs it" in prompt
    assert "{operator_pronouns}" not in prompt


def test_the_manager_is_told_what_all_are_and_its_duties(config: Config) -> None:
    manager = render_system_prompt(replace(config, label="manager"))

    assert manager.startswith(render_system_prompt(config).replace("alice", "manager", 1).rstrip())
    assert "Only the operator approves" in manager
    assert "Never put a secret into a repository" in manager
    assert tools_in(manager) == tools_for(Role.MANAGER).keys()


def test_the_manager_is_told_where_the_repositories_are(config: Config) -> None:
    told = replace(
        config,
        label="manager",
        configs=Path("/home/me/configs"),
        applied=Path("/home/me/{meta}"),
        meta=Path("/home/me/meta"),
    )

    prompt = render_system_prompt(told)

    assert "cd /home/me/configs/NAME/config\n" in prompt
    assert "-C /home/me/{meta}/NAME log" in prompt
    assert "- `/home/me/meta`: what is deployed where" in prompt
    assert "/agents" not in prompt


def test_only_the_manager_hears_of_its_duties(config: Config) -> None:
    assert "request_apply_commit" not in render_system_prompt(config)
    assert "request_apply_commit" not in render_system_prompt(replace(config, label="manager-2"))


# ── the task ────────────────────────────────────────────────────────────────────────────────────


def test_a_task_stands_at_the_end_as_it_is(config: Config) -> None:
    prompt = render_system_prompt(config, "Build {label}.\n\n## Twice\n")

    assert prompt.startswith(render_system_prompt(config))
    assert prompt.endswith("\n# Your task\n\nBuild {label}.\n\n## Twice\n")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_task_has_no_heading(config: Config, text: str) -> None:
    assert render_system_prompt(config, text) == render_system_prompt(config)


def test_without_a_file_there_is_no_task_and_no_note() -> None:
    assert read_task(None) == ("", [])


def test_the_task_is_what_the_file_says_now(tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"
    path.write_text("Build it.\n")
    assert read_task(path) == ("Build it.\n", [])
    path.write_text("Test it.\n")
    assert read_task(path) == ("Test it.\n", [])


def test_a_task_at_the_limit_is_whole_and_a_longer_one_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"
    path.write_bytes(b"x" * MAX_TASK_BYTES)
    assert read_task(path) == ("x" * MAX_TASK_BYTES, [])
    path.write_text("x" * (MAX_TASK_BYTES - 1) + "éé")

    text, notes = read_task(path)

    assert text == "x" * (MAX_TASK_BYTES - 1)
    assert notes == [f"The task is cut: {path} is longer than 65536 bytes"]


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\xffb")

    assert read_task(tmp_path / "f") == ("a\ufffdb", [])


def make_nothing(_path: Path) -> None:
    pass


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_nothing, Path.mkdir, os.mkfifo, make_loop])
def test_what_cannot_be_read_is_one_note_and_keeps_nobody_waiting(tmp_path: Path, make: object) -> None:
    path = tmp_path / "prompt.md"
    assert callable(make)
    make(path)

    text, notes = read_task(path)

    assert text == ""
    assert len(notes) == 1
    assert notes[0].startswith("The task is left out: ")
    assert str(path) in notes[0]


def test_a_path_that_cannot_be_one_is_a_note() -> None:
    assert len(read_task(Path("/a\0b"))[1]) == 1
