"""A client on the host of nodes that are doors in this process, and what one looks at there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.checksum import SEGMENT_BYTES
from client.chunks import ChunkClient, Reads
from client.colocated import Colocated
from client.manifest import Ref, make_ref
from client.retry import Deadline
from tests.support.door import Door
from tests.support.fake_cluster import FakeCluster, quick_config

__all__ = ["PAYLOAD", "PIECE_BYTES", "REF", "WHOLE", "Bench", "bench_at", "cut_when_opened", "mapped_bytes"]

PIECE_BYTES = 4 * SEGMENT_BYTES  # Smaller than usual, so that small chunks are read in several pieces.
PAYLOAD = random.Random(8).randbytes(2 * PIECE_BYTES + SEGMENT_BYTES + 100)
REF = make_ref(PAYLOAD, partitions=64)
WHOLE = (0, len(PAYLOAD))


class Bench:
    """A client of a cluster whose nodes answer over HTTP from dictionaries, and some of them through doors."""

    def __init__(self, sockets: dict[str, str], **settings: Any) -> None:
        self.fake = FakeCluster()
        self.fake.sockets = sockets
        for node in self.fake.nodes.values():
            node.chunks[REF.partition, REF.id] = PAYLOAD
        self.colocated = Colocated(self.fake.cluster, quick_config(**settings))
        self.chunks = ChunkClient(self.fake.cluster, self.fake.transport, self.colocated)

    @property
    def reads(self) -> Reads:
        return self.chunks.reads

    @property
    def asked_over_http(self) -> list[str]:
        return [name for name, node in self.fake.nodes.items() if node.requests]

    def fetch(self, start: int = 0, end: int = REF.size, *, ref: Ref = REF, deadline: Deadline | None = None) -> bytes:
        buffer = bytearray(end - start)
        self.chunks.fetch_into("node-0", ref, memoryview(buffer), start=start, deadline=deadline)
        return bytes(buffer)

    def reads_over_http(self) -> bool:
        """Whether the next read gets its bytes over the network, because the local way failed."""
        failures = self.reads.local_failures
        assert self.fetch() == PAYLOAD
        return (self.reads.local_failures - failures, self.asked_over_http) == (1, ["node-0"])


@contextmanager
def bench_at(sockets: dict[str, str], **settings: Any) -> Iterator[Bench]:
    bench = Bench(sockets, **settings)
    try:
        yield bench
    finally:
        bench.colocated.close()


def cut_when_opened(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the chunk's file cut short between the node's look at it and the reader's."""
    open_file = door.store.open_file

    def cut(partition: int, chunk_id: bytes) -> int:
        fd = open_file(partition, chunk_id)
        os.truncate(door.chunk_file(REF), PIECE_BYTES + 5)
        return fd

    monkeypatch.setattr(door.store, "open_file", cut)


def mapped_bytes(path: Path) -> int:
    """How much of the file this process maps, gone or not."""
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.removesuffix(" (deleted)").endswith(str(path)):
            start, end = line.split()[0].split("-")
            found += int(end, 16) - int(start, 16)
    return found
