"""A running machine is brought to another closure by that closure's own program."""

from pathlib import Path

import pytest

from hive_core.host import live_switch, live_switch_worker
from hive_core.host.process import CommandError

PROGRAM = "/nix/store/x/bin/switch-to-configuration"


@pytest.fixture
def closure(tmp_path: Path) -> str:
    program = tmp_path / "closure/bin/switch-to-configuration"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    return str(tmp_path / "closure")


async def work(timeout_s: float = 20) -> str:
    return await live_switch_worker.switch("h-alice", PROGRAM, timeout_s)


def shown(state: str, status: int) -> str:
    return f'case "$*" in *" show "*) printf "ActiveState={state}\\nExecMainStatus={status}\\n";; esac'


async def test_it_is_run_in_the_machine_and_cleared_away(fake_program) -> None:  # type: ignore[no-untyped-def]
    run, systemctl = fake_program("systemd-run"), fake_program("systemctl", shown("active", 0))

    assert await work() == "switched"

    (call,) = run.calls
    assert call.startswith("--machine=h-alice --quiet --no-block --unit=hive-switch-")
    assert call.endswith(f"-- {PROGRAM} test")
    assert [line.split()[2] for line in systemctl.calls[-2:]] == ["stop", "reset-failed"]


async def test_a_machine_that_cannot_run_it_needs_a_start(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("systemd-run", "exit 1")

    assert await work() == "needs a start"


async def test_one_that_wants_another_init_needs_a_start(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("systemd-run")
    fake_program("systemctl", shown("failed", 100))

    assert await work() == "needs a start"


async def test_what_failed_is_told(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("systemd-run")
    fake_program("systemctl", shown("failed", 4))
    fake_program("journalctl", "echo; echo the following units failed: x.service")

    assert await work() == f"failed: {PROGRAM} test: exit status 4: the following units failed: x.service"


async def test_one_that_does_not_end_is_told(fake_program) -> None:  # type: ignore[no-untyped-def]
    fake_program("systemd-run")
    fake_program("systemctl", shown("activating", 0))

    assert "not done within 0.5 s" in await work(0.5)


# ── what the daemon makes of it ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("answer", "outcome"), [("switched", True), ("needs a start", False)])
async def test_a_unit_with_more_rights_does_it(  # type: ignore[no-untyped-def]
    fake_program, closure: str, answer: str, outcome: bool
) -> None:
    run = fake_program("systemd-run", f"echo {answer}")

    assert await live_switch.switch("h-alice", closure) is outcome

    (call,) = run.calls
    assert f"live_switch_worker h-alice {closure}/bin/switch-to-configuration 300" in call


async def test_without_such_a_program_it_needs_a_start(fake_program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = fake_program("systemd-run")

    assert not await live_switch.switch("h-alice", str(tmp_path))

    assert run.calls == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'failed: x test: exit status 4'", "^x test: exit status 4$"),
        ("echo something", "nobody says how it ended"),
        ("echo killed >&2; exit 1", "killed"),
    ],
)
async def test_what_the_unit_says_of_a_failure_is_told(  # type: ignore[no-untyped-def]
    fake_program, closure: str, script: str, words: str
) -> None:
    fake_program("systemd-run", script)

    with pytest.raises(CommandError, match=words):
        await live_switch.switch("h-alice", closure)
