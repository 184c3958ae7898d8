"""How much lies on a node's disk, estimated from a sample: counting millions of files for every question would take minutes.

Chunks lie in 256 directories by the first byte of their ids, which are hashes: each directory is a fair sample of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storenode.chunkfile import parse_name
from storenode.filesystem import FileSystem, opened, translated

__all__ = ["Census", "take_census"]

# Of equal size, so many are counted to about 2 %; a small store is counted to the last chunk.
_SAMPLE_CHUNKS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Chunks and the bytes of their files."""

    num_chunks: int
    size_bytes: int


def take_census(fs: FileSystem, directories: Sequence[Path]) -> Census:
    """Count chunks, directory by directory, until they are a sample, and conclude from it; raises `DiskFailed`."""
    num_chunks = size_bytes = num_directories = 0
    for path in directories:
        with translated(path), opened(fs.open_directory(path)) as directory:
            for name in fs.list_names(path):
                if parse_name(name) is None:
                    continue
                try:
                    size_bytes += fs.stat_name(name, directory=directory).st_size
                except FileNotFoundError:
                    continue  # Gone since the directory was listed.
                num_chunks += 1
        num_directories += 1
        if num_chunks >= _SAMPLE_CHUNKS:
            break
    scale = len(directories) / num_directories
    return Census(num_chunks=round(num_chunks * scale), size_bytes=round(size_bytes * scale))
