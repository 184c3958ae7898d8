"""The members of a tar archive, read from a stream, strictly: an archive that was cut short, damaged or joined is an error.

Written because Python's tarfile takes a damaged header in mid-archive for the archive's end. Reads ustar, pax (path and size)
and GNU's long names; plain files are members, everything else (folders, links) is passed over, sparse files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loader.columns import MAX_VALUE_BYTES
from loader.input_file import InputStream
from loader.source_rows import SourceError

__all__ = ["Member", "tar_members"]

_RECORD: Final = 512
_ZEROS: Final = bytes(_RECORD)
_FILES: Final = (b"0", b"\0", b"7")
_MAX_NAME_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of an archive."""

    name: str
    data: bytes


def tar_members(stream: InputStream, *, where: str) -> Iterator[Member]:
    """The files of an archive, in its order.

    Raises
    ------
    SourceError
        If it is none, or damaged, cut short, or followed by something else.
    """
    long_name, long_size = None, None
    while (header := stream.read(_RECORD)) != _ZEROS:
        kind, name, size = _parse(header, where=where)
        if kind in (b"x", b"L"):
            extra = _data(stream, size, most=_MAX_NAME_BYTES, where=f"{where}, a long name")
            if kind == b"L":
                long_name = extra.rstrip(b"\0").decode(errors="surrogateescape")
            else:
                records = _pax(extra, where=where)
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if records.get("size", "").isdecimal() else long_size
            continue
        name, size = long_name or name, size if long_size is None else long_size
        long_name, long_size = None, None
        if kind == b"S":
            raise SourceError(f"{where}: {name} is a sparse file, which is not read; write the archive without")
        if kind in _FILES and not name.endswith("/"):
            yield Member(name=name, data=_data(stream, size, most=MAX_VALUE_BYTES, where=f"{where}, {name}"))
        elif kind not in (b"1", b"2", b"3", b"4", b"5", b"6"):
            _data(stream, size, most=MAX_VALUE_BYTES, where=f"{where}, {name}")
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise SourceError(
                f"{where}: something follows its end; joined archives hold rows that would be lost, so unjoin them"
            )


def _parse(header: bytes, *, where: str) -> tuple[bytes, str, int]:
    """Kind, name and size of a member."""
    if len(header) != _RECORD:
        raise SourceError(f"{where}: ends without the mark of an archive's end; it was cut short")
    try:
        expected = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        expected = -1
    if expected != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise SourceError(f"{where}: a header whose checksum is wrong; it is damaged, or no tar archive")
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    if header[124] & 0x80:
        size = int.from_bytes(header[125:136], "big")
    else:
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    return header[156:157], name.decode(errors="surrogateescape"), size


def _data(stream: InputStream, size: int, *, most: int, where: str) -> bytes:
    if size > most:
        raise SourceError(f"{where}: {size} bytes, more than the {most} that it may have")
    data = stream.read(size)
    if len(data) < size:
        raise SourceError(f"{where}: {len(data)} of {size} bytes; the archive was cut short")
    stream.read(-size % _RECORD)
    return data


def _pax(data: bytes, *, where: str) -> dict[str, str]:
    """The records ``length key=value`` of an extended header."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not length or length > len(data) or not equals:
            raise SourceError(f"{where}: an extended header that can't be read: {data[:40]!r}")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[length:]
    return records
