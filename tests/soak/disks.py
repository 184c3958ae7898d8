"""A small file system for each node, that a test can fill, and whose chunk files it can damage and look at.

Damage outlasts the fault that made it, until the node has found it and replaced the copy. Each damaged file is remembered, so
that the nemesis knows whether all is well before it touches another node's disk.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from client.checksum import blake3_id
from storenode.chunkfile import parse_name
from storenode.trailer import DamagedTrailer, Trailer, payload_bytes

__all__ = ["Disk", "mounted"]

SIZE_BYTES = 3 * 1024**3
NUM_NEWEST = 80


@dataclass(kw_only=True)
class Disk:
    """A node's data directory.

    Attributes
    ----------
    own : bool
        Whether it is a file system of its own, so that it can be filled.
    damaged : set of Path
        Files that were damaged, and of which it is not known that they are right again.
    """

    root: Path
    own: bool
    damaged: set[Path] = field(default_factory=set)

    def chunks(self) -> list[Path]:
        """The chunk files that it holds."""
        return list(self.root.glob("chunks/*/*-*"))

    def fill(self, *, leave_bytes: int) -> None:
        """Leave so little room, from now on."""
        self._resize(shutil.disk_usage(self.root).used + leave_bytes)

    def free(self) -> None:
        """Give the room back."""
        if self.own:
            self._resize(SIZE_BYTES)

    def _resize(self, size_bytes: int) -> None:
        # By its bound, at once: to write gigabytes would take seconds of everybody.
        subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(self.root)], capture_output=True, check=True)

    def damage(self, kind: str, rng: random.Random, *, num_files: int) -> int:
        """Flip a bit of, or cut short, some chunk files; returns how many."""
        files = [path for _, path in sorted((_changed_ns(path), path) for path in self.chunks())]
        # Of the newest, which are read the most.
        newest = files[-NUM_NEWEST:]
        chosen = rng.sample(newest, min(num_files, len(newest)))
        done = 0
        for path in chosen:
            with suppress(FileNotFoundError), path.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if kind == "cut":
                    file.truncate(rng.randrange(size))
                else:
                    place = rng.randrange(size)
                    byte = os.pread(file.fileno(), 1, place)[0]
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << rng.randrange(8)]), place)
                self.damaged.add(path)
                done += 1
        return done

    def wipe(self) -> int:
        """Delete all chunk files, as if the disk had been replaced by a copy without them; returns how many."""
        files = self.chunks()
        for path in files:
            path.unlink()
        self.damaged.update(files)
        return len(files)

    def still_damaged(self) -> set[Path]:
        """Damaged files that are not right yet; one that is gone is among them, for its copy may be missing."""
        self.damaged = {path for path in self.damaged if not _is_sound(path)}
        return set(self.damaged)

    def forgive(self, path: Path) -> None:
        """Nothing refers to this chunk any more."""
        self.damaged.discard(path)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns  # their times of modification are epochs
    except OSError:  # deleted meanwhile
        return 0


def _is_sound(path: Path) -> bool:
    """Whether every byte of a chunk file is as it was written."""
    named = parse_name(path.name)
    assert named is not None
    partition, chunk_id = named
    try:
        data = path.read_bytes()
        payload = data[: payload_bytes(len(data))]
    except (OSError, DamagedTrailer):
        return False
    trailer = Trailer.of(payload, partition=partition, chunk_id=chunk_id).encode()
    return blake3_id(payload) == chunk_id and data == payload + trailer


@contextmanager
def mounted(root: Path) -> Iterator[Disk]:
    """A disk at `root`: a file system in memory where this process may mount one, else a directory that can't be filled."""
    root.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "soak", str(root)]
    own = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(root=root, own=own)
    finally:
        if own:
            subprocess.run(["umount", "--lazy", str(root)], capture_output=True, check=True)
