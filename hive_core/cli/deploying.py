"""Waiting for deploys, and showing how they go."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hive_core.cli import human, output
from hive_core.cli.hive import Hive
from hive_core.cli.problems import FAILED, Problem
from hive_core.cli.safe import visible

Row = dict[str, Any]

ENDED: Final = frozenset({"done", "failed"})
FOLLOW: Final[Mapping[str, Any]] = {"cmd": "deploys", "follow": True}
STYLE: Final = {"done": "green", "failed": "red", "aborting": "red", "queued": "dim"}
NEWEST: Final = 100
"""Deploys among which one that was just asked for is looked for."""


def said(row: Row) -> str:
    """Give what it is and for whom: `deploy 9 (apply alice deployed/7)`."""
    words = [row.get("kind"), row.get("agent"), row.get("tag")]
    return f"deploy {row['id']} ({' '.join(visible(word) for word in words if word)})"


def show_step(row: Row) -> None:
    """Write where it is now, at once.  Why it went wrong is in its log."""
    step = str(row["step"])
    steps = row.get("steps") or [{"at": row.get("requested_at")}]
    at = output.paint(human.clock(steps[-1]["at"]), "dim")
    output.say(f"{at}  {said(row)} {output.paint(visible(step), STYLE.get(step, 'cyan'))}")
    output.flush()


def show_lines(lines: Iterable[str]) -> None:
    for line in lines:
        output.say(output.paint("          │ ", "dim") + visible(line.expandtabs()))
    output.flush()


class Waiting:
    """Deploys that are followed to their end; shown on the way, when a person looks."""

    def __init__(self, hive: Hive, items: Iterable[Row], *, aloud: bool) -> None:
        """*items* are those of FOLLOW, which was accepted before the deploys were asked for."""
        self._hive = hive
        self._items = items
        self._aloud = aloud
        self._steps: dict[int, str] = {}
        self._rows: dict[int, Row] = {}

    def wait(self, key: str, ids: Iterable[int]) -> list[Row]:
        """Give the rows of the deploys whose *key*, `id` or `approval_id`, is one of *ids*, once all ended.

        Without a time limit: a build may take hours, and Ctrl-C leaves it alone.

        Raises:
            Problem: the daemon went away.
        """
        wanted = list(dict.fromkeys(ids))
        self._look(key, wanted)
        if not self._is_over(wanted):
            for item in self._items:
                self._take(item.get("deploys", ()), key, wanted)
                if "lines" in item and "id" not in item:
                    self._look(key, wanted)  # we were too slow, and something was left out
                elif self._aloud and item.get("id") in {row["id"] for row in self._rows.values()}:
                    show_lines(item.get("lines", ()))
                if self._is_over(wanted):
                    break
            else:
                raise Problem(
                    FAILED,
                    "cannot see how it ends: the daemon closed the connection",
                    "it goes on by itself: hive deploys",
                )
        return [self._rows[one] for one in wanted]

    def _look(self, key: str, wanted: list[int]) -> None:
        self._take(self._hive.ask({"cmd": "deploys", "limit": NEWEST})["deploys"], key, wanted)

    def _take(self, rows: Iterable[Row], key: str, wanted: list[int]) -> None:
        for row in rows:
            if row.get(key) not in wanted:
                continue
            self._rows[row[key]] = row
            if self._aloud and self._steps.get(row["id"]) != row["step"]:
                show_step(row)
            self._steps[row["id"]] = row["step"]

    def _is_over(self, wanted: list[int]) -> bool:
        return all(one in self._rows and self._rows[one]["step"] in ENDED for one in wanted)


def failure(rows: Iterable[Row]) -> Problem | None:
    """Give what to say of those that failed, if any did."""
    failed = [row for row in rows if row["step"] == "failed"]
    if not failed:
        return None
    why = "; ".join(f"{said(row)}: {visible(row.get('error', 'no reason was given'))}" for row in failed)
    return Problem(FAILED, f"cannot finish {why}", f"hive deploys log {failed[0]['id']} has all of it")
