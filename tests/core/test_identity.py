"""Who may speak at an agent's socket."""

import os

import pytest

from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.serve.identity import LocalIdentity, MachineIdentity
from hive_core.wire.stream import Credentials

BASE = 0x40000000
ALICE = AgentRow("alice", Wanted.RUNNING, False, 0.0, uid_base=BASE)
UNITS = {1: "systemd-nspawn@h-alice.service", 2: "systemd-nspawn@h-bob.service", 3: "ssh.service"}


class Door:
    """The identity of alice, where processes 1, 2 and 3 are in the UNITS above."""

    def __init__(self, row: AgentRow = ALICE, *, quiet: bool = False) -> None:
        self.refused: list[tuple[str, int, str | None]] = []
        self._quiet = quiet
        identity = MachineIdentity(
            lambda agent, pid: UNITS.get(pid) == f"systemd-nspawn@h-{agent}.service", UNITS.get, self._note
        )
        self.admit = identity.of(row)

    def _note(self, agent: str, uid: int, unit: str | None) -> bool:
        self.refused.append((agent, uid, unit))
        return not self._quiet


@pytest.mark.parametrize("uid", [BASE, BASE + 1000, BASE + 65535])
def test_every_user_of_the_machine_is_its_agent(uid: int) -> None:
    door = Door()

    assert door.admit(Credentials(1, uid, uid)) is None
    assert door.refused == []


@pytest.mark.parametrize("uid", [0, 1000, BASE - 1, BASE + 65536, BASE + 70_000])
def test_a_user_of_somebody_else_is_refused_though_it_is_in_the_machine(uid: int) -> None:
    door = Door()

    refusal = door.admit(Credentials(1, uid, uid))

    assert refusal == f"cannot serve you: uid {uid} is none of the machine of agent alice"
    assert door.refused == [("alice", uid, "systemd-nspawn@h-alice.service")]


@pytest.mark.parametrize("pid", [2, 3, 4])
def test_a_process_elsewhere_is_refused_though_it_has_the_uid(pid: int) -> None:
    door = Door()

    refusal = door.admit(Credentials(pid, BASE, BASE))

    assert refusal == f"cannot serve you: its process {pid} is not in the machine of agent alice"
    assert door.refused == [("alice", BASE, UNITS.get(pid))]


def test_an_agent_without_users_admits_nobody() -> None:
    door = Door(AgentRow("alice", Wanted.RUNNING, False, 0.0))

    assert door.admit(Credentials(1, 0, 0)) is not None


def test_a_refusal_that_is_no_news_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    Door(quiet=True).admit(Credentials(3, 0, 0))
    assert caplog.text == ""
    Door().admit(Credentials(3, 0, 0))
    assert "Peer refused at the socket of alice uid=0 pid=3 unit=ssh.service" in caplog.text


def test_a_local_agent_is_whoever_has_the_daemons_user() -> None:
    admit = LocalIdentity().of(ALICE)
    uid = os.geteuid()

    assert admit(Credentials(1, uid, uid)) is None
    assert (
        admit(Credentials(1, uid + 1, uid))
        == f"cannot serve you: uid {uid + 1} is not the uid of agent alice"
    )
