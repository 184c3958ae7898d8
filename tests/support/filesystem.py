"""File systems for tests of disk code: one that counts, fails or stops at a call, and one that loses power.

Both are the real file system underneath, so that what a test finds on the disk is what the code did.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from storenode.filesystem import FileSystem

__all__ = ["FAST_DISK", "Call", "ScriptedFileSystem", "SimulatedCrash", "VolatileFileSystem"]

T = TypeVar("T")

# Where syncing takes no time, if there is such a place: for tests that sync often and never look at what a sync does.
FAST_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None


class SimulatedCrash(BaseException):
    """The process ends here. No handler for errors may catch it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the method's name, and the file name or the directory that it was about."""

    method: str
    subject: str = ""


class ScriptedFileSystem(FileSystem):
    """Records every call, and raises instead of making the chosen one.

    `fail` numbers calls from the present on: 0 is the next one. With ``method``, only calls of that method count. After a
    `SimulatedCrash` no call goes through any more, as for a process that is gone, until `revive`.

    ``release`` replaces the kernel's, ``free_bytes`` what the disk says is free; ``max_transfer_bytes`` cuts reads and
    writes short.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.free_bytes: int | None = None
        self.release = super().kernel_release()
        self.max_transfer_bytes: int | None = None
        self._faults: list[tuple[int, str | None, BaseException]] = []
        self._dead = False

    def fail(self, error: BaseException, *, at: int = 0, method: str | None = None) -> None:
        self._faults.append((at, method, error))

    def revive(self) -> None:
        self._dead = False
        self._faults.clear()

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.calls]

    def subject(self, fd: int) -> str:
        """What an open descriptor is called: the last part of its path, or its inode if it has no name."""
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def _call(self, method: str, subject: str, call: Callable[[], T]) -> T:
        if self._dead:
            raise SimulatedCrash("the process has crashed already")
        self.calls.append(Call(method, subject))
        pending, self._faults = self._faults, []
        raised: BaseException | None = None
        for at, only, error in pending:
            if only not in (None, method):
                self._faults.append((at, only, error))
            elif at > 0:
                self._faults.append((at - 1, only, error))
            else:
                raised = error
        if raised is not None:
            self._dead = isinstance(raised, SimulatedCrash)
            raise raised
        return call()

    def make_directory(self, path: Path) -> None:
        make = super().make_directory
        self._call("make_directory", path.name, lambda: make(path))

    def open_directory(self, path: Path) -> int:
        make = super().open_directory
        return self._call("open_directory", path.name, lambda: make(path))

    def list_names(self, path: Path) -> list[str]:
        make = super().list_names
        return self._call("list_names", path.name, lambda: make(path))

    def create_unnamed(self, *, directory: int, mode: int = 0o640) -> int:
        make = super().create_unnamed
        return self._call("create_unnamed", self.subject(directory), lambda: make(directory=directory, mode=mode))

    def open_file(self, name: str, *, directory: int) -> int:
        make = super().open_file
        return self._call("open_file", name, lambda: make(name, directory=directory))

    def write(self, fd: int, data: memoryview) -> int:
        make = super().write
        return self._call("write", "", lambda: make(fd, data[: self.max_transfer_bytes]))

    def pread_into(self, fd: int, buffer: memoryview, *, offset: int) -> int:
        make = super().pread_into
        return self._call("pread_into", self.subject(fd), lambda: make(fd, buffer[: self.max_transfer_bytes], offset=offset))

    def stat_file(self, fd: int) -> os.stat_result:
        make = super().stat_file
        return self._call("stat_file", self.subject(fd), lambda: make(fd))

    def stat_name(self, name: str, *, directory: int) -> os.stat_result:
        make = super().stat_name
        return self._call("stat_name", name, lambda: make(name, directory=directory))

    def stat_space(self, path: Path) -> os.statvfs_result:
        make = super().stat_space
        space = self._call("stat_space", path.name, lambda: make(path))
        if self.free_bytes is None:
            return space
        fields = list(space)
        fields[1] = 1  # f_frsize
        fields[4] = self.free_bytes  # f_bavail
        return os.statvfs_result(fields)

    def stamp_file(self, fd: int, *, seconds: int) -> None:
        make = super().stamp_file
        self._call("stamp_file", "", lambda: make(fd, seconds=seconds))

    def stamp_name(self, name: str, *, directory: int, seconds: int) -> None:
        make = super().stamp_name
        self._call("stamp_name", name, lambda: make(name, directory=directory, seconds=seconds))

    def sync_data(self, fd: int) -> None:
        make = super().sync_data
        self._call("sync_data", "", lambda: make(fd))

    def sync(self, fd: int) -> None:
        make = super().sync
        self._call("sync", self.subject(fd), lambda: make(fd))

    def begin_writing_back(self, fd: int, *, offset: int, size_bytes: int) -> None:
        make = super().begin_writing_back
        self._call("begin_writing_back", "", lambda: make(fd, offset=offset, size_bytes=size_bytes))

    def sync_everything(self, fd: int) -> None:
        make = super().sync_everything
        self._call("sync_everything", self.subject(fd), lambda: make(fd))

    def link(self, fd: int, name: str, *, directory: int) -> None:
        make = super().link
        self._call("link", name, lambda: make(fd, name, directory=directory))

    def kernel_release(self) -> str:
        return self.release

    def rename(self, name: str, *, directory: int, to_name: str, to_directory: int) -> None:
        make = super().rename
        self._call("rename", name, lambda: make(name, directory=directory, to_name=to_name, to_directory=to_directory))

    def unlink(self, name: str, *, directory: int) -> None:
        make = super().unlink
        self._call("unlink", name, lambda: make(name, directory=directory))


@dataclass
class _Unsynced:
    """What a directory would lose: names that were linked into it or renamed out of it since its last fsync."""

    linked: list[tuple[str, int]] = field(default_factory=list)
    renamed: list[tuple[str, Path]] = field(default_factory=list)


class VolatileFileSystem(ScriptedFileSystem):
    """A disk with a volatile cache, at its worst: `power_cut` takes back everything that no fsync has made durable.

    A name is durable once its directory was fsynced after the link, bytes once their file was. Renames come undone like
    links; deletions don't. A time that was set is durable only after a sync of everything: until then a new file has that of
    its last write, and one that was there the one before. The real fsync is not called: what counts is which calls the code
    makes, and tests run faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self._directories: dict[Path, _Unsynced] = {}
        # Files whose bytes were never synced, by inode, and where they were given a name.
        self._dirty: dict[int, Path | None] = {}
        # What the files' times would be, by inode, and their names.
        self._times_ns: dict[int, int] = {}
        self._named: dict[int, Path] = {}

    def create_unnamed(self, *, directory: int, mode: int = 0o640) -> int:
        fd = super().create_unnamed(directory=directory, mode=mode)
        self._dirty[os.fstat(fd).st_ino] = None
        return fd

    def link(self, fd: int, name: str, *, directory: int) -> None:
        super().link(fd, name, directory=directory)
        inode, path = os.fstat(fd).st_ino, _path(directory) / name
        self._named[inode] = path
        self._directories.setdefault(path.parent, _Unsynced()).linked.append((path.name, inode))
        if inode in self._dirty:
            self._dirty[inode] = path

    def rename(self, name: str, *, directory: int, to_name: str, to_directory: int) -> None:
        super().rename(name, directory=directory, to_name=to_name, to_directory=to_directory)
        unsynced = self._directories.setdefault(_path(directory), _Unsynced())
        unsynced.renamed.append((name, _path(to_directory) / to_name))

    def stamp_file(self, fd: int, *, seconds: int) -> None:
        found = os.fstat(fd)
        super().stamp_file(fd, seconds=seconds)
        self._times_ns.setdefault(found.st_ino, found.st_mtime_ns)

    def stamp_name(self, name: str, *, directory: int, seconds: int) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        super().stamp_name(name, directory=directory, seconds=seconds)
        self._times_ns.setdefault(found.st_ino, found.st_mtime_ns)
        self._named[found.st_ino] = _path(directory) / name

    def sync_data(self, fd: int) -> None:
        self._call("sync_data", "", lambda: self._dirty.pop(os.fstat(fd).st_ino, None))

    def sync(self, fd: int) -> None:
        self._call("sync", self.subject(fd), lambda: self._directories.pop(_path(fd), None))

    def sync_everything(self, fd: int) -> None:
        self._call("sync_everything", self.subject(fd), self._forget)

    def power_cut(self) -> None:
        for parent, lost in self._directories.items():
            for name, inode in lost.linked:
                path = parent / name
                if path.exists() and path.stat().st_ino == inode:
                    path.unlink()
            for name, moved in lost.renamed:
                if moved.exists() and not (parent / name).exists():
                    moved.rename(parent / name)
        for inode, time_ns in self._times_ns.items():
            path = self._named.get(inode, Path("/"))
            if path.exists() and path.stat().st_ino == inode:
                os.utime(path, ns=(time_ns, time_ns))
        for inode, named in self._dirty.items():
            if named is not None and named.exists() and named.stat().st_ino == inode:
                os.truncate(named, 0)
        self._forget()
        self.revive()

    def _forget(self) -> None:
        self._directories.clear()
        self._dirty.clear()
        self._times_ns.clear()
        self._named.clear()


def _path(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))
