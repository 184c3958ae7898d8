"""Copies on one disk that may be garbage: listed by their tags, and removed. Blocking; it does not know which are referred to.

A directory is looked at as a whole, so that memory is bounded by the names of one of the 256.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from storenode.chunkdirs import ChunkDirectories
from storenode.chunkfile import parse_name
from storenode.filesystem import FileSystem, opened, translated
from storenode.quarantine import chunk_set_aside
from storenode.screening import Screening

__all__ = ["Garbage", "Removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Copies that were removed, and the bytes that they took."""

    num_chunks: int = 0
    size_bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(num_chunks=self.num_chunks + other.num_chunks, size_bytes=self.size_bytes + other.size_bytes)


class Garbage:
    """The copies of one store, by their tags. Thread-safe."""

    def __init__(self, fs: FileSystem, *, dirs: ChunkDirectories, screening: Screening) -> None:
        self._fs = fs
        self._dirs = dirs
        self._screening = screening

    def older(self, first: int, *, below: int) -> list[tuple[int, bytes]]:
        """The copies, by partition and id, whose ids begin with the byte `first` and whose tags are less than `below`.

        Copies that come or go meanwhile may be among them or not. Raises `DiskFailed`.
        """
        path, found = self._dirs.parents[first], list[tuple[int, bytes]]()
        if below <= self._screening.floor:
            return found  # None of them is.
        with translated(path), opened(self._fs.open_directory(path)) as directory:
            for name in self._fs.list_names(path):
                if chunk := parse_name(name):
                    with suppress(FileNotFoundError):
                        if self._screening.tag_of(self._fs.stat_name(name, directory=directory)) < below:
                            found.append(chunk)
        return found

    def size_bytes(self, first: int, chunks: Iterable[tuple[int, bytes]]) -> int:
        """What the files of these copies take, whose ids begin with the byte `first`. Raises `DiskFailed`."""
        path, size_bytes = self._dirs.parents[first], 0
        with translated(path), opened(self._fs.open_directory(path)) as directory:
            for chunk in chunks:
                with suppress(FileNotFoundError):
                    size_bytes += self._fs.stat_name(self._dirs.at(*chunk).name, directory=directory).st_size
        return size_bytes

    def remove(self, first: int, chunks: Iterable[tuple[int, bytes]], *, below: int) -> Removed:
        """Remove those of `chunks`, whose ids begin with the byte `first`, whose tags are still less than `below`.

        The caller answers for it that every record that refers to one of them was, or will be, committed after all of its
        chunks were tagged with `below` or a later epoch. A crash may bring copies back, which are garbage then as now.
        Raises `DiskFailed`.
        """
        removed, path = Removed(), self._dirs.parents[first]
        try:
            with translated(path), opened(self._fs.open_directory(path)) as directory:
                for chunk in chunks:
                    size_bytes = self._screening.remove_older(self._dirs.at(*chunk), below=below, directory=directory)
                    removed += Removed(num_chunks=int(size_bytes > 0), size_bytes=size_bytes)
        finally:
            # Once for all of them: those that are kept open mislead nobody, they only take space.
            if removed.num_chunks:
                self._screening.withdrawn()
        return removed

    def set_aside(self, *, below: int) -> dict[str, tuple[int, bytes]]:
        """Copies in quarantine whose tags are less than `below`, by the names of their files. Raises `DiskFailed`."""
        path, found = self._dirs.quarantine, {}
        with translated(path), opened(self._fs.open_directory(path)) as directory:
            for name in self._fs.list_names(path):
                if chunk := chunk_set_aside(name):
                    with suppress(FileNotFoundError):
                        if self._screening.tag_of(self._fs.stat_name(name, directory=directory)) < below:
                            found[name] = chunk
        return found

    def discard(self, name: str) -> None:
        """Delete a copy in quarantine, which nobody will ask for again. Raises `DiskFailed`."""
        path = self._dirs.quarantine
        with translated(path), opened(self._fs.open_directory(path)) as directory, suppress(FileNotFoundError):
            self._fs.unlink(name, directory=directory)
