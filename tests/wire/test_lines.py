import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.wire.errors import LineTooLong
from hive_core.wire.limits import MAX_LINE_BYTES
from hive_core.wire.lines import LineDecoder

TEXT = st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"."))


def drain(decoder: LineDecoder) -> list[bytes | None]:
    """All lines; None stands for one that was too long."""
    lines: list[bytes | None] = []
    while True:
        try:
            line = decoder.next_line()
        except LineTooLong:
            lines.append(None)
            continue
        if line is None:
            return lines
        lines.append(line)


@given(lines=st.lists(TEXT), cuts=st.lists(st.integers(min_value=1, max_value=40)), limit=st.integers(1, 70))
def test_any_chunking_gives_back_the_same_lines_and_one_error_for_each_long_one(
    lines: list[bytes], cuts: list[int], limit: int
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    decoder = LineDecoder(max_bytes=limit)

    received = []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        decoder.receive_data(stream[:size])
        stream = stream[size:]
        received += drain(decoder)

    assert received == [line if len(line) <= limit else None for line in lines]
    assert decoder.buffered_bytes == 0


@given(chunks=st.lists(st.binary(max_size=60), max_size=40), limit=st.integers(1, 100))
def test_memory_stays_within_the_limit_and_one_chunk(chunks: list[bytes], limit: int) -> None:
    decoder = LineDecoder(max_bytes=limit)

    for chunk in chunks:
        decoder.receive_data(chunk)
        assert decoder.buffered_bytes <= limit + len(chunk)
        drain(decoder)
        assert decoder.buffered_bytes <= limit


def test_a_line_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    decoder = LineDecoder()
    decoder.receive_data(b"x" * MAX_LINE_BYTES + b"\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\n")

    assert decoder.next_line() == b"x" * MAX_LINE_BYTES
    with pytest.raises(LineTooLong, match="a line longer than 1048576 bytes"):
        decoder.next_line()
    assert decoder.next_line() is None


def test_a_too_long_line_is_told_before_it_ends_and_only_once() -> None:
    decoder = LineDecoder(max_bytes=4)
    decoder.receive_data(b"12345")

    with pytest.raises(LineTooLong):
        decoder.next_line()
    decoder.receive_data(b"678")
    assert decoder.next_line() is None
    assert decoder.buffered_bytes == 0


def test_lines_after_a_too_long_one_are_read() -> None:
    decoder = LineDecoder(max_bytes=4)
    decoder.receive_data(b"12345")
    with pytest.raises(LineTooLong):
        decoder.next_line()

    decoder.receive_data(b"6\nnext\n")

    assert decoder.next_line() == b"next"
    assert decoder.next_line() is None


def test_an_empty_line_is_a_line() -> None:
    decoder = LineDecoder()
    decoder.receive_data(b"\n\n")

    assert drain(decoder) == [b"", b""]
