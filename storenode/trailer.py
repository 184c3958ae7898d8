"""Codec of the trailer that ends every chunk file. Pure: bytes in, values out.

Layout, little-endian, directly behind the payload of `size` bytes:

    n × u64   xxh3_64 of each 64 KiB segment of the payload, n = ceil(size / 65536), the last segment may be short
    8 bytes   magic ``FBCHUNK1``
    u16       version, 1
    u32       partition
    32 bytes  id, the BLAKE3-256 of the payload
    u64       size
    u64       xxh3_64 of the whole payload
    u32       segment size, 65536
    u64       xxh3_64 of all bytes of the trailer before this field

A full segment adds 65,544 bytes to the file, a short one between 9 and 65,543, so the length of the file alone says where
the trailer begins: one read fetches all of it. A payload has at most 1 GiB, so that a damaged length never makes a reader
allocate more than a trailer can need. docs/FORMAT.md is the specification.

The checksum at the end makes damage to the trailer itself visible; that the payload matches its checksums is for whoever
reads the payload to find out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from typing_extensions import Buffer

from client.checksum import ID_BYTES, SEGMENT_BYTES, num_segments, segment_checks, xxh3

__all__ = ["CHECK_BYTES", "MAX_PAYLOAD_BYTES", "DamagedTrailer", "Trailer", "payload_bytes", "small_trailer", "trailer_bytes"]

MAGIC = b"FBCHUNK1"
VERSION = 1
CHECK_BYTES = 8
MAX_PAYLOAD_BYTES = 1 << 30
_FIELDS = struct.Struct("<8sHI32sQQI")
_CHECK = struct.Struct("<Q")
_TAIL_BYTES = _FIELDS.size + _CHECK.size


class DamagedTrailer(ValueError):
    """The bytes are no trailer; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """What a chunk file says about its payload.

    Attributes
    ----------
    partition : int
        Unsigned, 32 bits.
    id : bytes
        BLAKE3-256 of the payload, 32 bytes.
    size : int
        Bytes of payload.
    check : int
        xxh3_64 of the payload.
    segment_checks : bytes
        8 bytes for each segment of 64 KiB.
    """

    partition: int
    id: bytes
    size: int
    check: int
    segment_checks: bytes

    @classmethod
    def of(cls, payload: Buffer, *, partition: int, chunk_id: bytes) -> Trailer:
        """The trailer of `payload`, whose id the caller has already taken."""
        return cls(
            partition=partition,
            id=chunk_id,
            size=memoryview(payload).nbytes,
            check=xxh3(payload),
            segment_checks=segment_checks(payload),
        )

    def encode(self) -> bytes:
        """The trailer as it stands in the file."""
        assert len(self.id) == ID_BYTES, self.id
        assert len(self.segment_checks) == CHECK_BYTES * num_segments(self.size), len(self.segment_checks)
        fields = _FIELDS.pack(MAGIC, VERSION, self.partition, self.id, self.size, self.check, SEGMENT_BYTES)
        body = self.segment_checks + fields
        return body + _CHECK.pack(xxh3(body))

    @classmethod
    def decode(cls, data: Buffer) -> Trailer:
        """Read a whole trailer; raises `DamagedTrailer` unless every byte of it is as it was written."""
        view = memoryview(data).cast("B")
        if len(view) < _TAIL_BYTES:
            raise DamagedTrailer(f"{len(view)} bytes are too few for a trailer, which has at least {_TAIL_BYTES}")
        body = view[: -_CHECK.size]
        # The checksum first: on damaged bytes, what the other fields say means nothing.
        (expected,) = _CHECK.unpack(view[-_CHECK.size :])
        if xxh3(body) != expected:
            raise DamagedTrailer(f"the trailer's checksum is {xxh3(body):016x}, but it says {expected:016x}")
        table = body[: -_FIELDS.size]
        magic, version, partition, chunk_id, size, check, segment = _FIELDS.unpack(body[-_FIELDS.size :])
        if (magic, version, segment) != (MAGIC, VERSION, SEGMENT_BYTES):
            raise DamagedTrailer(
                f"magic {magic!r}, version {version}, segments of {segment} bytes; this program knows "
                f"{MAGIC!r}, version {VERSION}, {SEGMENT_BYTES} bytes"
            )
        if len(table) != CHECK_BYTES * num_segments(size):
            raise DamagedTrailer(f"{len(table)} bytes of segment checksums do not fit a payload of {size} bytes")
        return cls(partition=partition, id=chunk_id, size=size, check=check, segment_checks=bytes(table))


def small_trailer(partition: int, chunk_id: bytes, size_bytes: int, check: int) -> bytes:
    """The trailer of a chunk of at most one segment, whose checksum is the payload's: a reference tells every byte of it."""
    assert 0 < size_bytes <= SEGMENT_BYTES, size_bytes
    body = _CHECK.pack(check) + _FIELDS.pack(MAGIC, VERSION, partition, chunk_id, size_bytes, check, SEGMENT_BYTES)
    return body + _CHECK.pack(xxh3(body))


def trailer_bytes(size_bytes: int) -> int:
    """Length of the trailer behind a payload of `size_bytes`."""
    return CHECK_BYTES * num_segments(size_bytes) + _TAIL_BYTES


def payload_bytes(file_bytes: int) -> int:
    """Length of the payload in a chunk file of `file_bytes`; raises `DamagedTrailer` if no chunk file is that long."""
    body = file_bytes - _TAIL_BYTES
    num_full, rest = divmod(body, SEGMENT_BYTES + CHECK_BYTES)
    size_bytes = num_full * SEGMENT_BYTES + max(0, rest - CHECK_BYTES)
    # What is left over holds a short segment of at least one byte and its checksum, or nothing.
    if body < 0 or 0 < rest <= CHECK_BYTES or size_bytes > MAX_PAYLOAD_BYTES:
        raise DamagedTrailer(f"no chunk file is {file_bytes} bytes long; this one was cut short or grew")
    return size_bytes
