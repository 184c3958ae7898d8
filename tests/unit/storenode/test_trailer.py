"""The trailer's layout is pinned byte by byte, and no damage to it goes unseen."""

from __future__ import annotations

import struct

import pytest
import xxhash

from client.checksum import SEGMENT_BYTES, blake3_id
from storenode.trailer import MAX_PAYLOAD_BYTES, DamagedTrailer, Trailer, payload_bytes, trailer_bytes

SIZES = [0, 1, 7, 8, 9, 65_535, 65_536, 65_537, 131_072, 200_000]


def trailer_of(payload: bytes, partition: int = 7) -> Trailer:
    return Trailer.of(payload, partition=partition, chunk_id=blake3_id(payload))


def test_layout_is_the_specified_one() -> None:
    payload = b"a" * SEGMENT_BYTES + b"rest"
    body = struct.pack("<QQ", xxhash.xxh3_64_intdigest(b"a" * SEGMENT_BYTES), xxhash.xxh3_64_intdigest(b"rest"))
    body += b"FBCHUNK1" + struct.pack("<H", 1) + struct.pack("<I", 0xABCDEF) + blake3_id(payload)
    body += struct.pack("<QQI", len(payload), xxhash.xxh3_64_intdigest(payload), 65_536)
    expected = body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
    assert trailer_of(payload, partition=0xABCDEF).encode() == expected


@pytest.mark.parametrize("size", SIZES)
def test_decode_is_the_inverse_of_encode(size: int) -> None:
    trailer = trailer_of(bytes(size))
    encoded = trailer.encode()
    assert Trailer.decode(encoded) == trailer
    assert len(encoded) == trailer_bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_length_of_the_file_gives_length_of_the_payload(size: int) -> None:
    assert payload_bytes(size + trailer_bytes(size)) == size


def test_no_two_payloads_share_a_length_of_file() -> None:
    lengths = [size + trailer_bytes(size) for size in range(SEGMENT_BYTES - 20, SEGMENT_BYTES + 20)]
    possible = set(lengths)
    assert len(possible) == len(lengths)
    for length in range(lengths[0], lengths[-1]):
        if length not in possible:
            with pytest.raises(DamagedTrailer, match=f"{length} bytes long"):
                payload_bytes(length)


@pytest.mark.parametrize("length", [-1, 0, 1, trailer_bytes(0) - 1, 1 << 50])
def test_impossible_lengths_are_refused(length: int) -> None:
    with pytest.raises(DamagedTrailer):
        payload_bytes(length)


def test_the_longest_payload_is_accepted() -> None:
    assert payload_bytes(MAX_PAYLOAD_BYTES + trailer_bytes(MAX_PAYLOAD_BYTES)) == MAX_PAYLOAD_BYTES


def test_every_flipped_bit_is_seen() -> None:
    encoded = bytearray(trailer_of(b"x" * 100).encode())
    for place in range(len(encoded)):
        for bit in range(8):
            encoded[place] ^= 1 << bit
            with pytest.raises(DamagedTrailer):
                Trailer.decode(encoded)
            encoded[place] ^= 1 << bit
    Trailer.decode(encoded)


@pytest.mark.parametrize("kept", [0, 1, 8, 73, 81])
def test_a_cut_trailer_is_seen(kept: int) -> None:
    with pytest.raises(DamagedTrailer):
        Trailer.decode(trailer_of(b"x" * 100).encode()[:kept])


@pytest.mark.parametrize(
    ("at", "written", "said"), [(8, b"FBCHUNK2", "FBCHUNK2"), (16, b"\x02\x00", "version 2"), (70, b"\x00\x10\x00\x00", "4096")]
)
def test_other_formats_are_named(at: int, written: bytes, said: str) -> None:
    encoded = bytearray(trailer_of(b"x" * 100).encode())
    encoded[at : at + len(written)] = written
    encoded[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(encoded[:-8])))
    with pytest.raises(DamagedTrailer, match=said):
        Trailer.decode(encoded)


def test_a_table_of_another_length_is_refused() -> None:
    encoded = trailer_of(b"x" * 100).encode()
    body = bytes(8) + encoded[:-8]
    with pytest.raises(DamagedTrailer, match="16 bytes of segment checksums do not fit a payload of 100"):
        Trailer.decode(body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body)))
