"""Room on the disk that holds the chunks, a part of which is kept free. Blocking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.errors import DiskFull
from storenode.filesystem import FileSystem, translated

__all__ = ["DiskSpace", "DiskUsage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """Room on the disk that holds the chunks, in bytes; `free_bytes` is what this process may still use."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def read_only(self) -> bool:
        """Whether the reserve is reached, so that new chunks are refused."""
        return self.free_bytes < self.reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """The disk that a directory is on, of which `reserve_bytes` are kept free."""

    fs: FileSystem
    path: Path
    reserve_bytes: int

    def usage(self) -> DiskUsage:
        """How full the disk is. Raises `DiskFailed`."""
        with translated(self.path):
            space = self.fs.stat_space(self.path)
        return DiskUsage(
            total_bytes=space.f_blocks * space.f_frsize,
            free_bytes=space.f_bavail * space.f_frsize,
            reserve_bytes=self.reserve_bytes,
        )

    def require(self, size_bytes: int, *, key: str) -> None:
        """Raise `DiskFull` if so many bytes, for the chunk `key`, would take from the reserve."""
        # Before the first byte: a disk filled to the brim has no room for metadata either. Writers that run at the same
        # time may undercut the reserve by one chunk each.
        usage = self.usage()
        if usage.free_bytes - size_bytes < self.reserve_bytes:
            raise DiskFull(
                f"{self.path} has {usage.free_bytes} bytes free; {size_bytes} more would leave less than the reserve of "
                f"{self.reserve_bytes}; free space, add a node or lower the reserve",
                key=key,
            )
