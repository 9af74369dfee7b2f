import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.machine_names import MachineNames
from hive_core.wire.ids import AGENT_NAME_PATTERN, MANAGER, RESERVED_NAMES

NAMES = MachineNames("h-")


def test_the_managers_machine_is_hm1nd() -> None:
    assert (NAMES.machine("alice"), NAMES.machine(MANAGER)) == ("h-alice", "hm1nd")
    assert MachineNames("lab-").machine(MANAGER) == "labm1nd"


@given(st.from_regex(AGENT_NAME_PATTERN).filter(lambda name: name not in RESERVED_NAMES - {MANAGER}))
def test_every_agent_has_a_machine_of_its_own_and_is_found_by_it(agent: str) -> None:
    machine = NAMES.machine(agent)

    assert NAMES.agent(machine) == agent
    assert NAMES.covers(machine)
    assert (machine == NAMES.manager) is (agent == MANAGER)


@pytest.mark.parametrize(
    "machine", ["", "h-", "h-manager", "h-operator", "h-A", "hm1nd-2", "hm1n", "alice", "x-alice", "manager"]
)
def test_other_machines_are_nobodys(machine: str) -> None:
    assert NAMES.agent(machine) is None


def test_only_what_begins_like_ours_is_kept_from_others() -> None:
    assert NAMES.covers("h-")
    assert NAMES.covers("h-manager")
    assert not NAMES.covers("hm1nd2")
    assert NAMES.patterns == ("hm1nd", "h-*")
