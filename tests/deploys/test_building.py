"""The log of a deploy, and the builder of images with its hook."""

import os
import sys
from pathlib import Path

import pytest
import trio

from hive_core.builders import BuildFailed, Built, Target
from hive_core.config import Config
from hive_core.config import Deploy as DeployConfig
from hive_core.declarable import Bind
from hive_core.domain.manifest import Manifest
from hive_core.host.deploy_log import (
    MARK,
    MAX_LINE_CHARS,
    MAX_LOG_BYTES,
    MAX_LOGS,
    Audience,
    DeployLogs,
    Follower,
    plain_lines,
)
from hive_core.host.process import CommandError, run_aloud
from hive_core.tree_builder import TreeBuilder

# ── the log ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ("plain", ["plain"]),
        ("two\nlines\n", ["two", "lines"]),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07and", ["red and"]),
        ("10%\r50%\r100%\r\n", ["100%"]),
        ("a\u202eb\x00c\x7f", ["abc"]),
        ("x" * 5000, ["x" * (MAX_LINE_CHARS - 1) + "…"]),
    ],
)
def test_lines_are_bounded_and_act_on_no_terminal(said: str, lines: list[str]) -> None:
    assert plain_lines(said) == lines


def test_a_log_is_bounded_and_says_where_it_was_cut(tmp_path: Path) -> None:
    logs = DeployLogs(tmp_path / "deploys")
    logs.begin(1)
    for number in range(40_000):
        logs.append(1, [f"line {number:06} {'x' * 60}"])
    assert (tmp_path / "deploys" / "1.log").stat().st_size <= MAX_LOG_BYTES + 100
    lines = logs.read(1, 10**6)
    assert lines[0].startswith("line 000000")
    assert lines[-1].startswith("line 039999")
    assert lines.count(MARK) == 1
    head = lines[: lines.index(MARK)]
    assert [line[5:11] for line in head] == [f"{number:06}" for number in range(len(head))]
    assert logs.read(1, 2) == lines[-2:]


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    logs = DeployLogs(tmp_path)
    for number in range(1, MAX_LOGS + 11):
        logs.begin(number)
        logs.append(number, ["said"])
    assert {int(path.stem) for path in tmp_path.iterdir()} == set(range(11, MAX_LOGS + 11))
    assert logs.read(1, 10) == []


def test_a_disk_that_takes_no_log_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "deploys").write_text("no directory")
    logs = DeployLogs(tmp_path / "deploys")
    logs.begin(1)
    for _ in range(3):
        logs.append(1, ["said"])
    assert len(caplog.records) == 1


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    audience: Audience[int] = Audience()
    with audience.follower() as slow, audience.follower() as quick:
        for number in range(Follower.MAX_WAITING + 10):
            audience.tell(number)
            if number == 3:
                assert await quick.receive() == ([0, 1, 2, 3], 0)
        items, lost = await slow.receive()
        assert (items[0], len(items), lost) == (10, Follower.MAX_WAITING, 10)
    audience.tell(1)


# ── the hook ────────────────────────────────────────────────────────────────────────────────────

TOLD = Target(1, "alice", "1" * 40, Manifest(packages=["ripgrep", "jq"]))


def builder(hook: Path | str = "", timeout_s: float = 60) -> TreeBuilder:
    return TreeBuilder(
        None, lambda: Config(deploy=DeployConfig(packages_hook=str(hook), timeout_s=timeout_s))
    )


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport os, subprocess, sys, time\n{text}\n")
    path.chmod(0o755)
    return path


async def test_the_hook_is_given_image_and_packages_and_its_words_are_kept(tmp_path: Path) -> None:
    hook = program(
        tmp_path / "hook",
        "print(sys.argv[1:], flush=True); print('careful', file=sys.stderr); print('img\\n')",
    )
    said: list[str] = []
    assert await builder(hook).build(TOLD, said.append) == Built(None)
    assert "['alice', '', 'ripgrep', 'jq']" in said
    assert "careful" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sys.exit(3)", "failed: exit status 3"),
        ("pass", "named no image"),
        ("print('a\\x1b[31mb')", "named no image"),
        ("time.sleep(600)", "takes longer than deploy.timeout_s"),
    ],
)
async def test_a_hook_that_does_not_do_it_fails_the_build(tmp_path: Path, text: str, why: str) -> None:
    hook = program(tmp_path / "hook", text)
    timeout_s = 10 if "sleep" not in text else 0.5
    with pytest.raises(BuildFailed, match=r"^cannot build alice") as failed:
        # Less than the configuration allows, so that nobody waits for it here.
        await TreeBuilder(
            None, lambda: Config(deploy=DeployConfig(packages_hook=str(hook), timeout_s=timeout_s))
        ).build(TOLD, lambda _line: None)
    assert why in str(failed.value)


async def test_packages_without_a_hook_name_the_key() -> None:
    with pytest.raises(BuildFailed, match=r"set deploy\.packages_hook"):
        await builder().prepare(TOLD, lambda _line: None)


async def test_a_local_hive_says_what_it_ignores() -> None:
    said: list[str] = []
    manifest = Manifest(image="debian", network="veth", binds=[Bind(source="/srv")])
    await builder().prepare(Target(1, "alice", "1" * 40, manifest), said.append)
    assert said == ["This hive is a local one: it ignores image, network, binds of agent.toml."]


async def test_a_cancelled_program_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = f"import os, time; os.setsid(); open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    hook = program(
        tmp_path / "hook",
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); print('begun', flush=True); time.sleep(600)",
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            begun = trio.Event()
            nursery.start_soon(lambda: run_aloud([str(hook)], timeout_s=60, tell=lambda _line: begun.set()))
            await begun.wait()
            while not pids.exists() or not pids.read_text():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(int(pids.read_text()), 0)
            await trio.sleep(0.01)


async def test_what_a_program_leaves_behind_does_not_keep_anybody_waiting(tmp_path: Path) -> None:
    hook = program(
        tmp_path / "hook",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); print('image')",
    )
    with trio.fail_after(20):
        assert await run_aloud([str(hook)], timeout_s=60, tell=lambda _line: None) == b"image"
    with pytest.raises(CommandError, match="exit status 2"):
        await run_aloud(
            [str(program(tmp_path / "bad", "sys.exit(2)"))], timeout_s=60, tell=lambda _line: None
        )
