"""Files and folders to and from the store: streamed, several at once, nothing half-written on either side.

An object appears when its record is committed and a file when it is complete, so a transfer that is interrupted leaves whole
things only, and running it again does the rest. Memory holds a few chunks for each file under way. `client.sync` builds on
this what transfers only differences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from client.errors import InvalidName
from client.folder import LocalFile, replacing, walk_folder, write_all
from client.names import check_key
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo

__all__ = [
    "DEFAULT_PARALLEL",
    "Action",
    "OnBytes",
    "Transferred",
    "get_file",
    "get_folder",
    "ignore",
    "measure_folder",
    "put_file",
    "put_folder",
    "stoppable",
]

DEFAULT_PARALLEL = 4
Action = Literal["put", "get", "delete-object", "delete-file", "same", "skip"]
OnBytes = Callable[[int], None]


class _Stopped(Exception):
    """A transfer gave up because another one failed or the whole was interrupted. Nobody waits for its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What became of one file or object.

    Attributes
    ----------
    action : str
        put and get: copied. delete-object and delete-file: removed from the target. same: nothing to do. skip: can't be
        transferred.
    path : Path
        The file.
    bucket, key : str
        The object.
    detail : str
        Why it was skipped.
    """

    action: Action
    path: Path
    bucket: str
    key: str
    size_bytes: int
    detail: str = ""


def ignore(_size_bytes: int) -> None:
    """The progress of somebody who doesn't ask for it."""


def put_file(store: ObjectStore, path: Path, bucket: str, key: str, *, on_bytes: OnBytes = ignore) -> ObjectInfo:
    """Store the bytes of a file; `on_bytes` is told how many more have been read.

    Raises
    ------
    OSError
        The file can't be read. Nothing was stored.
    """
    with path.open("rb", buffering=0) as file:
        return store.put(bucket, key, cast(BinaryIO, _CountedReads(cast(BinaryIO, file), on_bytes)))


def get_file(store: ObjectStore, info: ObjectInfo, path: Path, *, on_bytes: OnBytes = ignore) -> None:
    """Write an object to a file, which appears when it is complete; `on_bytes` is told how many more are written.

    Raises
    ------
    OSError
        The file can't be written. What was there before still is.
    """
    with replacing(path) as fd:
        for piece in store.reader(info).stream():
            write_all(fd, piece)
            on_bytes(len(piece))


def measure_folder(folder: Path, *, prefix: str = "") -> int:
    """Bytes of all files below `folder`.

    Raises
    ------
    InvalidName
        A file's name can't be a key; says which one. So it is known before anything is sent.
    """
    total = 0
    for file in walk_folder(folder):
        if not file.skipped:
            _check_file_key(prefix + file.name, file)
            total += file.size_bytes
    return total


def put_folder(
    store: ObjectStore,
    folder: Path,
    bucket: str,
    prefix: str,
    *,
    max_parallel: int = DEFAULT_PARALLEL,
    on_bytes: OnBytes = ignore,
) -> Iterator[Transferred]:
    """Store every file below `folder` under `prefix` and its name; yields each in order, once it is stored.

    Parameters
    ----------
    prefix : str
        Empty, or ending with ``/``.
    max_parallel : int
        Files under way at once.
    """
    store.buckets.get(bucket)  # An unknown bucket is said once, before files are read.
    stop = threading.Event()

    def put(file: LocalFile) -> Transferred:
        key = prefix + file.name
        if file.skipped:
            return Transferred(action="skip", path=file.path, bucket=bucket, key=key, size_bytes=0, detail=file.skipped)
        info = put_file(store, file.path, bucket, _check_file_key(key, file), on_bytes=stoppable(on_bytes, stop))
        return Transferred(action="put", path=file.path, bucket=bucket, key=key, size_bytes=info.size)

    return bounded_map(put, walk_folder(folder), max_parallel=max_parallel, stop=stop)


def get_folder(
    store: ObjectStore,
    bucket: str,
    prefix: str,
    folder: Path,
    *,
    snapshot: str | None = None,
    max_parallel: int = DEFAULT_PARALLEL,
    on_bytes: OnBytes = ignore,
) -> Iterator[Transferred]:
    """Write every object below `prefix` into `folder`; see `put_folder`, whose inverse it is."""
    stop = threading.Event()

    def get(info: ObjectInfo) -> Transferred:
        path = folder / info.key.removeprefix(prefix)
        get_file(store, info, path, on_bytes=stoppable(on_bytes, stop))
        return Transferred(action="get", path=path, bucket=bucket, key=info.key, size_bytes=info.size)

    return bounded_map(get, store.walk(bucket, prefix=prefix, snapshot=snapshot), max_parallel=max_parallel, stop=stop)


def stoppable(on_bytes: OnBytes, stop: threading.Event) -> OnBytes:
    """`on_bytes`, which raises once `stop` is set, so that a large file is given up at its next chunk."""

    def advance(size_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        on_bytes(size_bytes)

    return advance


def _check_file_key(key: str, file: LocalFile) -> str:
    try:
        return check_key(key)
    except InvalidName as error:
        raise InvalidName(f"file {str(file.path)!r} can't become an object: {error.message}", key=key) from error


class _CountedReads:
    """A file that tells how much is read from it."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        self._on_bytes(len(data))
        return data
