import itertools

import pytest

from hive_core.config import Machines
from hive_core.domain.machine import (
    Action,
    Exits,
    Fresh,
    Plan,
    Transient,
    Wanted,
    has_failed,
    plan,
    restart_delay_s,
    transient,
)

CONFIG = Machines(restart_limit=3, restart_window_s=60.0, restart_delay_s=1.0, restart_delay_max_s=3.0)
NO_EXIT, ONE_EXIT = Exits(), Exits((100.0,), "exit status 1")
FAILED = Exits((98.0, 99.0, 100.0), "exit status 1")
NOW = 100.5

TABLE = {
    # wanted, alive, restart, exits → plan
    (Wanted.RUNNING, False, False, NO_EXIT): Plan(Action.START),
    (Wanted.RUNNING, False, False, ONE_EXIT): Plan(Action.WAIT, 0.5),
    (Wanted.RUNNING, False, False, FAILED): Plan(Action.WAIT),
    (Wanted.RUNNING, False, True, NO_EXIT): Plan(Action.START),
    (Wanted.RUNNING, False, True, ONE_EXIT): Plan(Action.START),
    (Wanted.RUNNING, False, True, FAILED): Plan(Action.START),
    (Wanted.RUNNING, True, False, NO_EXIT): Plan(Action.WAIT),
    (Wanted.RUNNING, True, False, ONE_EXIT): Plan(Action.WAIT),
    (Wanted.RUNNING, True, False, FAILED): Plan(Action.WAIT),
    (Wanted.RUNNING, True, True, NO_EXIT): Plan(Action.STOP),
    (Wanted.RUNNING, True, True, ONE_EXIT): Plan(Action.STOP),
    (Wanted.RUNNING, True, True, FAILED): Plan(Action.STOP),
}
for _exits, _restart in itertools.product((NO_EXIT, ONE_EXIT, FAILED), (False, True)):
    TABLE[Wanted.STOPPED, False, _restart, _exits] = Plan(Action.WAIT)
    TABLE[Wanted.GONE, False, _restart, _exits] = Plan(Action.REMOVE)
    TABLE[Wanted.PURGED, False, _restart, _exits] = Plan(Action.REMOVE)
    for _wanted in (Wanted.STOPPED, Wanted.GONE, Wanted.PURGED):
        TABLE[_wanted, True, _restart, _exits] = Plan(Action.STOP)


@pytest.mark.parametrize(
    ("wanted", "alive", "restart", "exits"),
    list(itertools.product(Wanted, (False, True), (False, True), (NO_EXIT, ONE_EXIT, FAILED))),
)
def test_every_situation_has_its_plan(wanted: Wanted, alive: bool, restart: bool, exits: Exits) -> None:
    found = plan(wanted, alive=alive, restart=restart, exits=exits, now=NOW, config=CONFIG)
    assert found == TABLE[wanted, alive, restart, exits]


def test_a_machine_is_started_again_when_its_delay_is_over() -> None:
    assert plan(Wanted.RUNNING, alive=False, restart=False, exits=ONE_EXIT, now=101.0, config=CONFIG) == Plan(
        Action.START
    )


def test_the_delay_doubles_with_each_recent_exit_up_to_its_limit() -> None:
    exits, delays = Exits(), []
    for now in (0.0, 1.0, 2.0, 3.0):
        exits = exits.and_one(now, "exit status 1", 60.0)
        delays.append(restart_delay_s(exits, CONFIG))
    assert delays == [1.0, 2.0, 3.0, 3.0]


def test_exits_outside_the_window_are_forgotten() -> None:
    exits = Exits().and_one(0.0, "a", 60.0).and_one(1.0, "b", 60.0).and_one(100.0, "c", 60.0)
    assert exits == Exits((100.0,), "c")
    assert not has_failed(exits, CONFIG)


def test_a_machine_that_ends_too_often_has_failed() -> None:
    assert has_failed(FAILED, CONFIG)


TRANSIENTS = {
    # action, fresh → what is shown, of an agent that is wanted to run
    (Action.START, None): Transient.STARTING,
    (Action.START, Fresh.RESTART): Transient.RESTARTING,
    (Action.START, Fresh.REBUILD): Transient.REBUILDING,
    (Action.STOP, None): Transient.STOPPING,
    (Action.STOP, Fresh.RESTART): Transient.RESTARTING,
    (Action.STOP, Fresh.REBUILD): Transient.REBUILDING,
}


@pytest.mark.parametrize(
    ("wanted", "action", "fresh"), list(itertools.product(Wanted, Action, (None, *Fresh)))
)
def test_every_action_is_shown_as_what_it_serves(wanted: Wanted, action: Action, fresh: Fresh | None) -> None:
    if wanted in {Wanted.GONE, Wanted.PURGED}:
        expected: Transient | None = Transient.DESTROYING
    elif action in {Action.WAIT, Action.REMOVE}:
        expected = None
    elif wanted is Wanted.STOPPED:
        expected = Transient.STARTING if action is Action.START else Transient.STOPPING
    else:
        expected = TRANSIENTS[action, fresh]
    assert transient(wanted, action, fresh) is expected
