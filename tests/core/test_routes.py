"""Who may call what, as the table says it."""

from itertools import product
from typing import get_args

import pytest

from hive_core.handlers.deps import Role
from hive_core.handlers.routes import ROUTES, Route, route_of
from hive_core.wire import agent, agent_manager, host
from hive_core.wire.errors import ErrorCode, Refused

ADMITTED = {
    (Role.OPERATOR, Role.OPERATOR),
    (Role.AGENT, Role.AGENT),
    (Role.MANAGER, Role.MANAGER),
    (Role.AGENT, Role.MANAGER),
}


@pytest.mark.parametrize(("may_call", "role"), list(product(Role, Role)))
def test_a_manager_is_an_agent_and_nobody_else_is_anything_else(may_call: Role, role: Role) -> None:
    assert Route(print, may_call, host.Reply).admits(role) is ((may_call, role) in ADMITTED)


def test_each_wire_is_for_those_at_its_socket() -> None:
    roles = {request: route.may_call for request, route in ROUTES.items()}

    assert {roles[request] for request in get_args(host.AnyRequest)} == {Role.OPERATOR}
    for request in get_args(agent.AnyRequest):
        is_managers = request.__module__ == agent_manager.__name__
        assert roles[request] is (Role.MANAGER if is_managers else Role.AGENT)


def test_who_may_not_is_told_who_may() -> None:
    request = agent_manager.Kill(name="bob")

    assert route_of(request, Role.MANAGER) is ROUTES[agent_manager.Kill]
    for role in (Role.AGENT, Role.OPERATOR):
        with pytest.raises(Refused, match="cannot kill: only the manager may") as caught:
            route_of(request, role)
        assert caught.value.code is ErrorCode.FORBIDDEN
