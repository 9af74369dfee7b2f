"""The daemon, as the commands see it: requests out, plain dicts back, every failure a Problem."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from hive_core.cli import where
from hive_core.cli.problems import NOT_FOUND, TIMED_OUT, UNREACHABLE, Problem, of_error
from hive_core.wire.client import Client, RequestFailed, TimedOut, Unreachable

TIMEOUT_S: Final = 30.0

_HOW_TO_GET_IN: Final = (
    "it is for root and the group hive-admin; as root: usermod -aG hive-admin USER, then log in anew"
)

_APPROVALS_ARE_IN: Final = "hive approvals shows the newest ones, hive pending those that wait"
_LISTS: Final = {
    "approval": _APPROVALS_ARE_IN,
    "approve": _APPROVALS_ARE_IN,
    "deny": _APPROVALS_ARE_IN,
    "cancel_approval": _APPROVALS_ARE_IN,
    "deploy_log": "hive deploys shows the newest ones",
}
"""What shows the ids that there are, by the request that was for another one."""

Row = dict[str, Any]


class Hive:
    """The daemon at one socket.  Every request is a connection of its own."""

    def __init__(
        self, socket: str | None = None, home: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.path, self._hint = where.find(socket, home)
        self.timeout_s = timeout_s

    def ask(
        self, request: dict[str, Any], *, agents: Sequence[str] = (), timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Send one request and give its reply, without `version` and `ok`.

        *agents* are the names in it that may be misspelt.

        Raises:
            Problem: in every case in which there is no such reply.
        """
        try:
            with Client(self.path, self.timeout_s if timeout_s is None else timeout_s) as client:
                reply = client.ask(request)
        except (Unreachable, TimedOut, RequestFailed) as error:
            raise self._problem(error, request, agents) from error
        return _bare(reply)

    def follow(self, request: dict[str, Any], *, agents: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Send a request that follows and give its items for ever.

        Raises:
            Problem: also when the stream ends, since it should not.
        """
        with self.following(request, agents=agents) as items:
            yield from items
        raise Problem(
            UNREACHABLE,
            f"cannot follow any longer: the daemon at {self.path} closed the connection",
            "it was restarted or has ended: run this again",
        )

    @contextmanager
    def following(
        self, request: dict[str, Any], *, agents: Sequence[str] = ()
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Send a request that follows and, once it is accepted, hand over its items.

        Raises:
            Problem: in every case in which there are none.
        """
        try:
            with Client(self.path, self.timeout_s) as client:
                yield map(_bare, client.follow(request))
        except (Unreachable, TimedOut, RequestFailed) as error:
            raise self._problem(error, request, agents) from error

    def roster(self, *, timeout_s: float | None = None) -> dict[str, Row]:
        """Every agent's row of `agent_status`, by name."""
        rows = self.ask({"cmd": "agent_status"}, timeout_s=timeout_s)["agent_statuses"]
        return {row["name"]: row for row in rows}

    def row(self, agent: str) -> Row:
        """One agent's row.

        Raises:
            Problem: NOT_FOUND, with the nearest name as a hint.
        """
        roster = self.roster()
        try:
            return roster[agent]
        except KeyError:
            raise Problem(
                NOT_FOUND,
                f"cannot find agent {agent!r}: it is not managed by this hive",
                nearest([agent], list(roster)),
            ) from None

    def _problem(self, error: Exception, request: dict[str, Any], agents: Sequence[str]) -> Problem:
        problem = of_error(error)
        if isinstance(error, Unreachable):
            problem.hint = _HOW_TO_GET_IN if error.is_denied else self._hint
        elif isinstance(error, TimedOut):
            text = f"cannot go on: the daemon at {self.path} did not answer {request['cmd']!r} in time"
            problem = Problem(TIMED_OUT, text)
        elif isinstance(error, RequestFailed):
            if problem.exit_code == NOT_FOUND and (lists := _LISTS.get(request["cmd"])):
                problem.hint = lists
            elif problem.exit_code == NOT_FOUND and agents:
                problem.hint = self._suggestion(agents)
            elif error.reply.get("reason") == "changed":
                problem.hint = f"hive approvals show {request.get('id')} shows what it is now"
            elif "last_id" in error.reply:
                problem.hint = f"the last id that came was {error.reply['last_id']}"
        return problem

    def _suggestion(self, agents: Sequence[str]) -> str | None:
        try:
            with Client(self.path, min(self.timeout_s, 2.0)) as client:
                names = [str(name) for name in client.ask({"cmd": "list"})["agents"]]
        except (Unreachable, TimedOut, RequestFailed, KeyError):
            return None
        # Were they all there, something else was not found.
        return None if names and all(agent in names for agent in agents) else nearest(agents, names)


class Deadline:
    """Runs out *seconds* after it was made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        return self._at - time.monotonic()


def nearest(wanted: Sequence[str], names: Sequence[str]) -> str:
    """A hint for names that do not exist."""
    import difflib

    near = [
        found[0]
        for name in wanted
        if name not in names and (found := difflib.get_close_matches(name.lower(), names, n=1))
    ]
    if near:
        return f"did you mean {' and '.join(near)}?"
    return (
        "hive ls shows which agents there are"
        if names
        else "there are no agents yet; make one with: hive spawn alice"
    )


def _bare(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key not in {"version", "ok"}}
