"""A cluster's metadata as one file: gzip of JSON, a line each for a header, every key, and a trailer.

    {"format": "forebay-metadata", "version": 1, "cluster_id", "created_s", "incarnation", "revision", "top", "frozen"}
    {"key": "...", "value": "..."}
    {"items": 2, "blake3": "..."}

The digest is of all lines before the trailer, so a file that was cut short or damaged is recognised before anything is made of
it. Keys and values are text, as all of ours are. Nothing in it depends on an engine: records say their versions themselves.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from client.errors import MetadataCorrupt, Misconfigured
from client.wire import encode_json
from storenode.filesystem import translated

__all__ = ["Header", "Summary", "read_items", "verify", "write_archive"]

FORMAT = "forebay-metadata"
VERSION = 1
# A value may be as large as a transaction, and each of its bytes six in JSON.
_MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file is an export of.

    Attributes
    ----------
    revision : int
        At which all keys were read.
    top : int
        The highest version that can have been given out up to there.
    frozen : bool
        Whether nothing was committed afterwards.
    """

    cluster_id: str
    created_s: float
    incarnation: str
    revision: int
    top: int
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole file: its header, how many keys it has, and the digest that tells it from others."""

    header: Header
    num_items: int
    digest: str


def write_archive(path: Path, header: Header, items: Iterable[tuple[str, bytes]]) -> Summary:
    """Make the file, whole or not at all, in place of one that may be there. Raises `DiskFull`, `DiskFailed`."""
    part = path.with_name(path.name + ".part")
    digest, num_items = blake3(), 0
    with translated(path):
        try:
            with part.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                for line in _lines(header, items):
                    packed.write(line)
                    digest.update(line)
                    num_items += 1
                num_items -= 1  # the header
                packed.write(encode_json({"items": num_items, "blake3": digest.hexdigest()}) + b"\n")
                packed.flush()
            _make_durable(part, os.O_RDONLY)
            part.replace(path)
            # The name too: who is told that there is an export may take the engine down next.
            _make_durable(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return Summary(header=header, num_items=num_items, digest=digest.hexdigest())


def verify(path: Path) -> Summary:
    """What the file holds, once all of it was read and found whole.

    Raises
    ------
    MetadataCorrupt
        It is no export, or cut short, or damaged.
    Misconfigured
        There is no such file, or a later release wrote it.
    """
    header: Header | None = None
    summary: Summary | None = None
    digest, num_items = blake3(), -1
    for line, value in _read(path):
        if header is None:
            header = _header(path, value)
        elif summary is not None:
            raise _broken(path, "it goes on after its trailer")
        elif "blake3" in value:
            if (value["items"], value["blake3"]) != (num_items, digest.hexdigest()):
                raise _broken(
                    path, f"its trailer tells of {value['items']} keys and another content than the {num_items} found"
                )
            summary = Summary(header=header, num_items=num_items, digest=digest.hexdigest())
        elif not (isinstance(value.get("key"), str) and isinstance(value.get("value"), str)):
            raise _broken(path, f"line {num_items + 2} is no key")
        digest.update(line)
        num_items += 1
    # Only now, for the end of the compressed stream has its own check.
    if summary is None:
        raise _broken(path, "it ends before its trailer")
    return summary


def read_items(path: Path) -> Iterator[tuple[str, bytes]]:
    """The keys and values of a file that `verify` has found whole."""
    for _, value in _read(path):
        if "key" in value:
            yield value["key"], value["value"].encode()


def _lines(header: Header, items: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    yield encode_json({"format": FORMAT, "version": VERSION, **asdict(header)}) + b"\n"
    for key, value in items:
        try:
            text = value.decode()
        except UnicodeDecodeError as exc:
            raise MetadataCorrupt(f"the value of {key!r} is no text, and none of ours", key=key) from exc
        yield encode_json({"key": key, "value": text}) + b"\n"


def _header(path: Path, value: Mapping[str, Any]) -> Header:
    if value.get("format") != FORMAT:
        raise _broken(path, f"it does not begin as an export of metadata, but with {str(value)[:60]}")
    if value["version"] != VERSION:
        raise Misconfigured(
            f"{path} has version {value['version']}, and this program knows {VERSION}; use the release it is of"
        )
    return Header(**{name: value[name] for name in Header.__slots__})


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line, and the object in it."""
    with _readable(path) as file, gzip.GzipFile(fileobj=file, mode="rb") as packed:
        while line := packed.readline(_MAX_LINE_BYTES):
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError(f"a line is {str(value)[:60]}")
            yield line, value


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, KeyError, TypeError) as exc:
        raise MetadataCorrupt(f"{path} is no whole export of metadata ({exc}); nothing was imported, export again") from exc
    except OSError as exc:
        raise Misconfigured(f"{path} can't be read: {exc.strerror}") from exc


def _broken(path: Path, why: str) -> MetadataCorrupt:
    return MetadataCorrupt(f"{path} is no whole export of metadata: {why}; nothing was imported, export again")


def _make_durable(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
