"""What the provider lacks for the next turn: a rate limit that is over, credentials that are there."""

import time
from collections.abc import Callable
from typing import Final

import trio

from hive_agent.mark import Mark
from hive_agent.providers.base import Outcome, Provider, TurnResult
from hive_agent.retry import RATE_LIMIT_SLEEP_S, back_off_s, park_s
from hive_agent.state import Board, Status

LOGIN_POLL_S: Final = 2.0


class Readiness:
    """While it is not *ready*, no message is taken; *note* tells people why."""

    def __init__(
        self,
        provider: Provider,
        *,
        board: Board,
        mark: Mark,
        note: Callable[[str], None],
        sleep_s: float = RATE_LIMIT_SLEEP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._board = board
        self._mark = mark
        self._note = note
        self._sleep_s = sleep_s
        self._clock = clock
        self._parked = False
        self._parked_until = float("-inf")
        self._parks_in_a_row = 0
        self._needs_login = provider.capabilities.login and not provider.is_logged_in()
        self._believe_login_at = float("-inf")
        self._logouts_in_a_row = 0
        if self._needs_login:
            board.hold(Status.NEEDS_LOGIN_IDLE)

    @property
    def ready(self) -> bool:
        return not (self._needs_login or self._parked)

    def take(self, result: TurnResult) -> bool:
        """Learn from how a turn ended; True when it failed for want of what `wait` waits for."""
        match result.outcome:
            case Outcome.OK:
                self._parks_in_a_row = self._logouts_in_a_row = 0
            case Outcome.RATE_LIMITED:
                self._park(result.reset_at)
            case Outcome.NEEDS_LOGIN:
                self._ask_for_login()
        return not self.ready

    async def wait(self) -> None:
        """Wait until it is ready.  Cancelled, it may be called again later: a limit goes on meanwhile."""
        if self._needs_login:
            await self._wait_for_login()
        if self._parked:
            await trio.sleep_until(self._parked_until)
            self._parked = False
            self._mark.remove()
            self._board.let_go(Status.RATE_LIMITED)

    def try_again(self) -> None:
        """Something has changed that may end a limit, or may have brought credentials.

        A `wait` that is under way does not notice: cancel it and call it again.
        """
        self._parked_until = self._believe_login_at = float("-inf")

    def _park(self, reset_at: float | None) -> None:
        self._parked = True
        self._parks_in_a_row += 1
        now = self._clock()
        seconds = park_s(reset_at, now, sleep_s=self._sleep_s, parks=self._parks_in_a_row)
        self._parked_until = trio.current_time() + seconds
        self._mark.put(now + seconds)
        self._board.hold(Status.RATE_LIMITED)
        self._note(f"Rate limited: going on in {seconds:.0f} s")

    def _ask_for_login(self) -> None:
        self._needs_login = True
        self._logouts_in_a_row += 1
        # Credentials that were refused may look as good as ever.
        self._believe_login_at = trio.current_time() + back_off_s(self._logouts_in_a_row)
        self._board.hold(Status.NEEDS_LOGIN_IDLE)
        self._note("Login needed: waiting for credentials")

    async def _wait_for_login(self) -> None:
        await trio.sleep_until(self._believe_login_at)
        while not self._provider.is_logged_in():
            await trio.sleep(LOGIN_POLL_S)
        self._needs_login = False
        self._board.let_go(Status.NEEDS_LOGIN_IDLE)
        self._note("Logged in: going on")
