"""The hashes, against values that will not change, and that any buffer will do."""

from __future__ import annotations

import struct

from client.checksum import SEGMENT_BYTES, blake3_id, content_digest, num_segments, segment_checks, xxh3


def test_hashes_are_those_of_the_published_algorithms() -> None:
    # From the test vectors of xxHash (seed 0) and BLAKE3 for the empty input.
    assert xxh3(b"") == 0x2D06800538D394C2
    assert blake3_id(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_any_buffer_hashes_like_its_bytes() -> None:
    plain = bytes(range(256)) * 600
    for data in (bytearray(plain), memoryview(plain), memoryview(bytearray(b"x" + plain))[1:]):
        assert xxh3(data) == xxh3(plain)
        assert blake3_id(data) == blake3_id(plain)
        assert segment_checks(data) == segment_checks(plain)


def test_segment_checks_cover_every_byte_with_a_short_last_segment() -> None:
    data = bytes(range(256)) * 1024 + b"tail"
    checks = struct.unpack("<5Q", segment_checks(data))
    assert checks[:4] == tuple(xxh3(data[i * SEGMENT_BYTES : (i + 1) * SEGMENT_BYTES]) for i in range(4))
    assert checks[4] == xxh3(b"tail")


def test_number_of_segments_at_the_borders() -> None:
    sizes = (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1)
    assert [num_segments(size) for size in sizes] == [0, 1, 1, 1, 2]
    assert [len(segment_checks(bytes(size))) for size in sizes] == [0, 8, 8, 8, 16]


def test_content_digest_depends_on_the_order_of_chunks() -> None:
    first, second = blake3_id(b"a"), blake3_id(b"b")
    assert content_digest([first, second]) == blake3_id(first + second).hex()
    assert content_digest([first, second]) != content_digest([second, first])
