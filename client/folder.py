"""Folders of the local file system, as the recursive transfers see them.

Names are paths relative to the folder with ``/`` between their parts, in the order of their UTF-8 bytes, which is the order of
a listing. A file gets its name only once it is complete: bytes go to a file beside it, which then takes its place. What ends
without a power failure leaves nothing half-written; writing through to the disk is left to the system, as with `cp`.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer

__all__ = ["LocalFile", "replacing", "walk_folder", "write_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """Something in a folder that is not a folder.

    Attributes
    ----------
    name : str
        Path relative to the folder that was walked.
    skipped : str
        Why this can't be transferred; empty for a file.
    """

    path: Path
    name: str
    size_bytes: int
    skipped: str = ""


def walk_folder(folder: Path) -> Iterator[LocalFile]:
    """All files below `folder`, in the order of their names' bytes. Links to files count as files.

    Raises
    ------
    OSError
        A folder can't be read.
    """
    yield from _walk(folder, "")


def _walk(folder: Path, prefix: str) -> Iterator[LocalFile]:
    with os.scandir(folder) as found:
        entries = [(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name, entry) for entry in found]
    # A folder sorts with its slash, as the keys below it do: "a-b" before "a/x" before "a0".
    entries.sort(key=lambda item: os.fsencode(item[0]))
    for name, entry in entries:
        path = Path(entry.path)
        if name.endswith("/"):
            yield from _walk(path, prefix + name)
        elif entry.is_file():
            yield LocalFile(path=path, name=prefix + name, size_bytes=entry.stat().st_size)
        else:
            # A folder behind a link might be one that the walk is inside of.
            kind = "a link to a folder" if entry.is_dir() else "a broken link" if entry.is_symlink() else "not a file"
            yield LocalFile(path=path, name=prefix + name, size_bytes=0, skipped=kind)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A file descriptor whose bytes become the file at `path` when the block ends, and vanish when it fails.

    A link is followed, and the file keeps its permissions. What exists and is no file, such as a pipe or ``/dev/null``, is
    written to directly. Missing parent folders are made.

    Raises
    ------
    OSError
        `path` is a folder, or can't be written.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    if mode is not None and not stat.S_ISREG(mode):
        fd = os.open(target, os.O_WRONLY)  # raises IsADirectoryError for a folder
        try:
            yield fd
        finally:
            os.close(fd)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}.forebay-part"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            if mode is not None:
                os.fchmod(fd, stat.S_IMODE(mode))
            yield fd
        finally:
            os.close(fd)
        os.replace(beside, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data`."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
