"""Newline-terminated lines, sans-IO: the framing of host.sock."""

from hive_core.wire.errors import LineTooLong
from hive_core.wire.limits import MAX_LINE_BYTES


class LineDecoder:
    """Gives back the lines of a byte stream, however it was cut into chunks.

    A line longer than *max_bytes* is dropped while it comes in, so it never fills memory; it costs
    one LineTooLong and the lines after it are read as usual.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._skipping = False

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def receive_data(self, chunk: bytes) -> None:
        self._buffer += chunk

    def next_line(self) -> bytes | None:
        """Give the next line without its newline, or None until more data has come.

        Raises:
            LineTooLong: once for each line above the limit.
        """
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                self._scanned = len(self._buffer)
                if self._skipping:
                    self._drop(self._scanned)
                elif self._scanned > self._max_bytes:
                    self._drop(self._scanned)
                    self._skipping = True
                    raise self._too_long()
                return None
            line = bytes(memoryview(self._buffer)[:end]) if end <= self._max_bytes else None
            self._drop(end + 1)
            if self._skipping:
                self._skipping = False
                continue
            if line is None:
                raise self._too_long()
            return line

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0

    def _too_long(self) -> LineTooLong:
        return LineTooLong(f"a line longer than {self._max_bytes} bytes")
