"""The few calls of the operating system that the store's disk code makes, as a port that tests substitute.

Names are relative to an open directory, so no path is resolved twice; only who does nothing but open one file gives its path.
`UnnamedFile` is the one way in which a file comes to be: complete under its name, or not there at all. The port knows nothing
of chunks, and production code has no hooks: a test passes a subclass that counts, fails or stops at a call. Closing and mapping
are left out, because no promise depends on them.

Linux only: ``O_TMPFILE`` and ``/proc/self/fd`` have no counterpart elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from typing_extensions import Buffer

from client.errors import DiskFailed, DiskFull, StoreError

__all__ = ["FileSystem", "UnnamedFile", "disk_error", "opened", "translated", "write_new"]

_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)  # Python has no name for these calls. They let other threads run.
_WRITTEN_BACK_AT_BYTES = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileSystem:
    """The local file system."""

    def make_directory(self, path: Path) -> None:
        os.mkdir(path, 0o750)

    def open_directory(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def list_names(self, path: Path) -> list[str]:
        return os.listdir(path)

    def create_unnamed(self, *, directory: int, mode: int = 0o640) -> int:
        """A new file without a name in `directory`'s file system; it is gone when closed, unless `link` names it."""
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory)

    def open_file(self, name: str, *, directory: int) -> int:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def open_path(self, path: str) -> int:
        """As `open_file`, by its whole path, for who needs nothing else in its directory."""
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, fd: int, data: memoryview) -> int:
        """Write at the file's position; returns how many bytes were taken, perhaps fewer than given."""
        return os.write(fd, data)

    def pread_into(self, fd: int, buffer: memoryview, *, offset: int) -> int:
        """Fill `buffer` from `offset`; returns how many bytes there were, 0 at the end of the file."""
        return os.preadv(fd, [buffer], offset)

    def stat_file(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat_name(self, name: str, *, directory: int) -> os.stat_result:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def stat_space(self, path: Path) -> os.statvfs_result:
        return os.statvfs(path)

    def stamp_file(self, fd: int, *, seconds: int) -> None:
        """Set the time of last modification, in seconds since 1970."""
        os.utime(fd, (seconds, seconds))

    def stamp_name(self, name: str, *, directory: int, seconds: int) -> None:
        os.utime(name, (seconds, seconds), dir_fd=directory, follow_symlinks=False)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_everything(self, fd: int) -> None:
        """syncfs(2): all bytes and all names in the file system of `fd`, or the error of a write since `fd` was opened."""
        if _LIBC.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def kernel_release(self) -> str:
        return os.uname().release

    def begin_writing_back(self, fd: int, *, offset: int, size_bytes: int) -> None:
        """sync_file_range(2): have the kernel begin to write these bytes to the disk. It promises nothing and does not wait."""
        if _LIBC.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def link(self, fd: int, name: str, *, directory: int) -> None:
        """Give the unnamed file `fd` the name; `FileExistsError` if it is taken."""
        # Both keywords together make Python call linkat(AT_SYMLINK_FOLLOW); without them it would try to link the
        # symbolic link in /proc itself, on another device.
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=True)

    def rename(self, name: str, *, directory: int, to_name: str, to_directory: int) -> None:
        os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=to_directory)

    def unlink(self, name: str, *, directory: int) -> None:
        os.unlink(name, dir_fd=directory)


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close `fd` at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


class UnnamedFile:
    """A file without a name, to be written and then linked. When it is closed without that it is gone.

    Use it as a context manager, or `close` it.
    """

    def __init__(self, fs: FileSystem, *, directory: int, mode: int = 0o640) -> None:
        self._fs = fs
        self._fd = fs.create_unnamed(directory=directory, mode=mode)
        self._written = self._begun = 0

    def write(self, data: Buffer) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        while rest:
            count = self._fs.write(self._fd, rest)
            rest = rest[count:]
            self._written += count
        if self._written - self._begun >= _WRITTEN_BACK_AT_BYTES:
            # The disk may begin while the rest is still coming, and `link_as` then waits for the end of it only.
            self._fs.begin_writing_back(self._fd, offset=self._begun, size_bytes=self._written - self._begun)
            self._begun = self._written

    def stamp(self, seconds: int) -> None:
        """Set the time of last modification, once all bytes are written: each write sets it to the present."""
        self._fs.stamp_file(self._fd, seconds=seconds)

    def link_as(self, name: str, *, directory: int) -> None:
        """Make the bytes durable, then let them appear under `name`. The name itself is not durable yet.

        The caller fsyncs `directory` before it tells anyone, and never acts on the name before.

        Raises
        ------
        FileExistsError
            If the name is taken. Nothing changed.
        """
        # Before the name, so that the name never leads to bytes that a power cut can take back. If it fails, the kernel may
        # have dropped the dirty pages and marked them clean: a second call would succeed and mean nothing. So the file is
        # given up here, never synced again.
        self._fs.sync_data(self._fd)
        # The commit: link is atomic and refuses a taken name, where a rename would silently replace another's file.
        self._fs.link(self._fd, name, directory=directory)

    def close(self) -> None:
        """Let go of the file; may be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> UnnamedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def write_new(fs: FileSystem, name: str, *, directory: int, parts: Sequence[Buffer]) -> None:
    """Make a new file appear under `name` with all of its bytes on the disk; see `UnnamedFile.link_as`.

    Raises
    ------
    FileExistsError
        If the name is taken. Nothing changed.
    OSError
        If a call failed. Nothing is left behind: a file without a name vanishes with its descriptor.
    """
    with UnnamedFile(fs, directory=directory) as file:
        for part in parts:
            file.write(part)
        file.link_as(name, directory=directory)


def disk_error(exc: OSError, path: Path, *, key: str | None = None) -> StoreError:
    """What `exc`, met at `path`, is called in the store: `DiskFull` or `DiskFailed`."""
    if exc.errno in _FULL:
        return DiskFull(f"{path}: {exc.strerror} (errno {exc.errno}); free space or add a node", key=key)
    return DiskFailed(f"{path}: {exc.strerror} (errno {exc.errno})", key=key)


@contextmanager
def translated(path: Path, *, key: str | None = None) -> Iterator[None]:
    """Turn every `OSError` of the block into what the store calls it."""
    try:
        yield
    except OSError as exc:
        raise disk_error(exc, path, key=key) from exc
