import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.wire.errors import ProtocolError
from hive_core.wire.frame import HEADER_BYTES, FrameDecoder, encode_frame
from hive_core.wire.limits import MAX_FRAME_BYTES


def drain(decoder: FrameDecoder) -> list[bytes]:
    payloads = []
    while (payload := decoder.next_payload()) is not None:
        payloads.append(payload)
    return payloads


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=200)),
    cuts=st.lists(st.integers(min_value=1, max_value=40)),
)
def test_any_chunking_gives_back_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, payloads))
    decoder = FrameDecoder()

    received = []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        decoder.receive_data(stream[:size])
        stream = stream[size:]
        received += drain(decoder)

    assert received == payloads
    assert decoder.buffered_bytes == 0


@given(chunks=st.lists(st.binary(max_size=60), max_size=40), limit=st.integers(1, 300))
def test_garbage_raises_only_protocol_errors_and_never_fills_memory(chunks: list[bytes], limit: int) -> None:
    decoder = FrameDecoder(max_bytes=limit)

    for chunk in chunks:
        try:
            decoder.receive_data(chunk)
            drain(decoder)
        except ProtocolError:
            assert decoder.buffered_bytes == 0
        assert decoder.buffered_bytes < HEADER_BYTES + limit


@pytest.mark.parametrize("size", [0, 11, 2**24, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_any_payload_is_kept(size: int) -> None:
    decoder = FrameDecoder(max_bytes=10)
    decoder.receive_data(size.to_bytes(4, "big") + b"x" * 5)

    with pytest.raises(ProtocolError, match=rf"a frame of {size} bytes: 1 to 10 are allowed"):
        decoder.next_payload()

    assert decoder.buffered_bytes == 0


def test_after_a_bad_length_the_decoder_takes_nothing_more() -> None:
    decoder = FrameDecoder()
    decoder.receive_data(bytes(4))
    with pytest.raises(ProtocolError):
        decoder.next_payload()

    with pytest.raises(ProtocolError):
        decoder.receive_data(encode_frame(b"fine"))
    with pytest.raises(ProtocolError):
        decoder.next_payload()

    assert decoder.buffered_bytes == 0


def test_frames_before_a_bad_length_are_still_given() -> None:
    decoder = FrameDecoder()
    decoder.receive_data(encode_frame(b"good") + b"\xff\xff\xff\xff")

    assert decoder.next_payload() == b"good"
    with pytest.raises(ProtocolError):
        decoder.next_payload()


@pytest.mark.parametrize("size", [1, 9, 10])
def test_sizes_up_to_the_limit_pass(size: int) -> None:
    decoder = FrameDecoder(max_bytes=10)
    decoder.receive_data(encode_frame(b"x" * size))

    assert decoder.next_payload() == b"x" * size


def test_the_largest_frame_begins_with_a_zero_byte_and_comes_through() -> None:
    payload = bytes(MAX_FRAME_BYTES)
    frame = encode_frame(payload)
    decoder = FrameDecoder()
    decoder.receive_data(frame)

    assert frame[:HEADER_BYTES] == b"\x00\xff\xff\xff"
    assert decoder.next_payload() == payload


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1])
def test_a_payload_that_no_peer_would_take_is_not_encoded(size: int) -> None:
    with pytest.raises(ValueError, match="a frame holds 1 to"):
        encode_frame(bytes(size))


def test_the_size_of_the_frame_under_way_is_known_as_soon_as_its_header_is() -> None:
    decoder = FrameDecoder()

    decoder.receive_data(b"\x00\x01\x00")
    assert decoder.wanted_bytes == 0
    decoder.receive_data(b"\x05")
    assert decoder.wanted_bytes == 2**16 + 5
