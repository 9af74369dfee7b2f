"""Length-prefixed frames, sans-IO: 4 bytes of length, big-endian, then that many bytes of payload."""

from typing import Final

from hive_core.wire.errors import ProtocolError
from hive_core.wire.limits import MAX_FRAME_BYTES

HEADER_BYTES: Final = 4


def encode_frame(payload: bytes) -> bytes:
    """Put the length before *payload*.

    Raises:
        ValueError: it is empty or longer than MAX_FRAME_BYTES.
    """
    if not 1 <= len(payload) <= MAX_FRAME_BYTES:
        raise ValueError(f"a frame holds 1 to {MAX_FRAME_BYTES} bytes, not {len(payload)}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameDecoder:
    """Gives back the payloads of a byte stream, however it was cut into chunks.

    A length that is zero or above *max_bytes* raises ProtocolError before a byte of that frame is
    kept; the decoder refuses everything after that.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._broken: ProtocolError | None = None

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    @property
    def wanted_bytes(self) -> int:
        """Size of the payload that is being received, 0 while its length is not known."""
        if len(self._buffer) < HEADER_BYTES:
            return 0
        return int.from_bytes(self._buffer[:HEADER_BYTES], "big")

    def receive_data(self, chunk: bytes) -> None:
        if self._broken is not None:
            raise self._broken
        self._buffer += chunk

    def next_payload(self) -> bytes | None:
        """Give the next whole payload, or None until more data has come.

        Raises:
            ProtocolError: the next frame's length is out of bounds.
        """
        if self._broken is not None:
            raise self._broken
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        size = self.wanted_bytes
        if not 1 <= size <= self._max_bytes:
            self._buffer = bytearray()
            self._broken = ProtocolError(f"a frame of {size} bytes: 1 to {self._max_bytes} are allowed")
            raise self._broken
        end = HEADER_BYTES + size
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[HEADER_BYTES:end])
        del buffer[:end]  # cheap: a bytearray only moves its start
        return payload
