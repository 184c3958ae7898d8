"""Make a prefix of the store equal to a folder, or a folder equal to a prefix, moving only what differs.

Both sides are walked in the order of their names and merged, so memory does not grow with either. Files are compared by their
bytes, not by their times: a record names the BLAKE3 of each chunk, so the folder's side is hashed and nothing is fetched.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.checksum import blake3_id
from client.errors import ObjectNotFound
from client.folder import LocalFile, walk_folder
from client.names import check_key
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo
from client.transfer import DEFAULT_PARALLEL, Action, OnBytes, Transferred, get_file, ignore, put_file, stoppable

__all__ = ["Pair", "merge", "same_bytes", "sync"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What the two sides have under one name; at least one of them has something."""

    name: str
    file: LocalFile | None
    info: ObjectInfo | None


def merge(files: Iterable[LocalFile], infos: Iterable[ObjectInfo], *, prefix: str) -> Iterator[Pair]:
    """Join files and objects by name. Both must come in the order of the names' bytes."""
    left, right = iter(files), iter(infos)
    file, info = next(left, None), next(right, None)
    while file is not None or info is not None:
        file_name = None if file is None else os.fsencode(file.name)
        info_name = None if info is None else os.fsencode(info.key.removeprefix(prefix))
        first = min(name for name in (file_name, info_name) if name is not None)
        yield Pair(
            name=os.fsdecode(first),
            file=file if file_name == first else None,
            info=info if info_name == first else None,
        )
        if file_name == first:
            file = next(left, None)
        if info_name == first:
            info = next(right, None)


def same_bytes(store: ObjectStore, info: ObjectInfo, file: LocalFile) -> bool:
    """Whether a file has the bytes of an object. Reads the file up to the first difference, of the store only manifests."""
    if file.size_bytes != info.size:
        return False
    with file.path.open("rb", buffering=0) as opened:
        for span in store.reader(info).spans(0, info.size):
            if blake3_id(_read(opened.fileno(), span.offset, span.end - span.start)) != span.ref.id:
                return False
    return True


def sync(
    store: ObjectStore,
    folder: Path,
    bucket: str,
    prefix: str,
    *,
    direction: Literal["put", "get"],
    delete: bool = False,
    dry_run: bool = False,
    max_parallel: int = DEFAULT_PARALLEL,
    on_bytes: OnBytes = ignore,
) -> Iterator[Transferred]:
    """Make the target equal to the source; yields what was done for each name, in order.

    Parameters
    ----------
    prefix : str
        Empty, or ending with ``/``.
    direction : str
        put: the folder is the source and the prefix the target; get: the other way round.
    delete : bool
        Remove from the target what the source doesn't have.
    dry_run : bool
        Compare, and yield what would be done.
    max_parallel : int
        Files compared and moved at once.
    """
    store.buckets.get(bucket)  # An unknown bucket is said once, before files are read.
    stop = threading.Event()
    files = walk_folder(folder) if direction == "put" or folder.exists() else iter(())

    def settle(pair: Pair) -> Transferred:
        done = Transferred(
            action=_decide(store, pair, direction=direction, delete=delete),
            path=folder / pair.name,
            bucket=bucket,
            key=prefix + pair.name,
            size_bytes=_size(pair, direction=direction),
            detail=pair.file.skipped if pair.file else "",
        )
        if not dry_run:
            _carry_out(store, done, pair, folder=folder, on_bytes=stoppable(on_bytes, stop))
        return done

    pairs = merge(files, store.walk(bucket, prefix=prefix), prefix=prefix)
    return bounded_map(settle, pairs, max_parallel=max_parallel, stop=stop)


def _decide(store: ObjectStore, pair: Pair, *, direction: Literal["put", "get"], delete: bool) -> Action:
    file, info = pair.file, pair.info
    if file is not None and file.skipped:
        return "skip"
    if direction == "put" and file is None:
        return "delete-object" if delete else "same"
    if direction == "get" and info is None:
        return "delete-file" if delete else "same"
    if file is not None and info is not None and same_bytes(store, info, file):
        return "same"
    return direction


def _size(pair: Pair, *, direction: Literal["put", "get"]) -> int:
    """Bytes that are copied, or of what is only in the target."""
    file_bytes = pair.file.size_bytes if pair.file is not None else None
    info_bytes = pair.info.size if pair.info is not None else None
    first, second = (file_bytes, info_bytes) if direction == "put" else (info_bytes, file_bytes)
    return (first if first is not None else second) or 0


def _carry_out(store: ObjectStore, done: Transferred, pair: Pair, *, folder: Path, on_bytes: OnBytes) -> None:
    if done.action == "put":
        put_file(store, done.path, done.bucket, check_key(done.key), on_bytes=on_bytes)
    elif done.action == "get" and pair.info is not None:
        get_file(store, pair.info, done.path, on_bytes=on_bytes)
    elif done.action == "delete-object" and pair.info is not None:
        # Only the version that was compared; somebody may have written a new one, or have deleted it as well.
        with suppress(ObjectNotFound):
            store.delete(done.bucket, done.key, if_match=pair.info.etag)
    elif done.action == "delete-file":
        done.path.unlink(missing_ok=True)
        _remove_empty(done.path.parent, top=folder)


def _remove_empty(folder: Path, *, top: Path) -> None:
    with suppress(OSError):  # Not empty, or gone: both end the way up.
        while folder != top:
            folder.rmdir()
            folder = folder.parent


def _read(fd: int, offset: int, size_bytes: int) -> bytes:
    pieces = []
    while size_bytes:
        piece = os.pread(fd, size_bytes, offset)
        if not piece:
            break  # The file became shorter; what is missing makes the difference.
        pieces.append(piece)
        offset, size_bytes = offset + len(piece), size_bytes - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
