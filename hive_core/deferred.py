"""One answer that comes later.

The doors hand a request to a plain function and write the reply from the callback: a message that is
being committed, or a recv that is parked, costs no task.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
U = TypeVar("U")


class Deferred(Generic[T]):
    """A result or an error, given once; its two callbacks run on the event loop as it is given.

    *on_cancel* is what `cancel` calls: the maker forgets the request and says whether it still could.
    """

    __slots__ = ("_error", "_on_cancel", "_on_error", "_on_value", "_value", "done")

    def __init__(self, on_cancel: Callable[[], bool] | None = None) -> None:
        self._on_cancel = on_cancel
        self._on_value: Callable[[T], None] | None = None
        self._on_error: Callable[[Exception], None] | None = None
        self._value: T | None = None
        self._error: Exception | None = None
        self.done = False

    def resolve(self, value: T) -> None:
        if self.done:
            return
        self.done, self._value = True, value
        on_value = self._on_value
        self._forget()
        if on_value is not None:
            on_value(value)

    def fail(self, error: Exception) -> None:
        if self.done:
            return
        self.done, self._error = True, error
        on_error = self._on_error
        self._forget()
        if on_error is not None:
            on_error(error)

    def then(self, on_value: Callable[[T], None], on_error: Callable[[Exception], None]) -> None:
        if not self.done:
            self._on_value, self._on_error = on_value, on_error
        elif self._error is not None:
            on_error(self._error)
        else:
            on_value(self._value)  # type: ignore[arg-type]

    def map(self, fn: Callable[[T], U]) -> "Deferred[U]":
        """Give a deferred whose result is *fn* of this one's."""
        mapped: Deferred[U] = Deferred(self.cancel)
        self.then(lambda value: mapped.resolve(fn(value)), mapped.fail)
        return mapped

    def cancel(self) -> bool:
        """Ask for no answer any more.  False: it comes all the same."""
        return not self.done and self._on_cancel is not None and self._on_cancel()

    def _forget(self) -> None:
        # Callbacks mostly hold what holds this: kept, each message would wait for the garbage collector.
        self._on_value = self._on_error = self._on_cancel = None

    async def wait(self) -> T:
        """Wait for the result.  When the waiting is cancelled, so is the request.

        Raises:
            the error that it failed with.
        """
        came = trio.Event()
        self.then(lambda _value: came.set(), lambda _error: came.set())
        try:
            await came.wait()
        except trio.Cancelled:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
