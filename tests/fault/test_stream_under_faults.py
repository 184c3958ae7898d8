"""The stream of samples at fifty moments of trouble: nodes killed, paused, drained and added, chunk files corrupted.

What happens when is decided by a seed, in batches and not in seconds. One node at a time is down, and each chunk is corrupted
on one disk at most, so that of three copies a good one can always be read. Then no item of the stream may differ.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from client.client import Client
from client.errors import LayoutsPending
from client.manifest import Ref
from client.names import parse_url
from loader import ShardedDataset, ShardWriter
from tests.support.cluster import LiveCluster, running_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

URL = "forebay://data/rows"
ROWS, BATCH, SEED = 4096, 32, 77
NUM_BATCHES = ROWS // BATCH
CASES = [("", 20), ("fork", 10), ("spawn", 10), ("forkserver", 10)]
KINDS = ("kill", "pause", "corrupt", "drain", "add")
MAX_SPARES = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LiveCluster]:
    with running_cluster(tmp_path) as cluster:
        columns = {"row": "int64", "blob": "uint8[1024]"}
        with ShardWriter(URL, columns, num_lanes=16, block_size_bytes=16 * 1024, endpoints=list(cluster.endpoints)) as writer:
            blobs = np.random.default_rng(2).integers(0, 256, (ROWS, 1024), np.uint8)
            writer.write_batch({"row": np.arange(ROWS), "blob": blobs})
        yield cluster


class Trouble:
    """Does to the cluster what a seed says. What was down is up again before anything else goes down.

    Attributes
    ----------
    done : list of str
        What was done.
    """

    def __init__(self, cluster: LiveCluster, client: Client, *, choices: random.Random) -> None:
        self._cluster = cluster
        self._client = client
        self._choices = choices
        self._down = ExitStack()
        self._draining = ""
        self._corrupted: set[Ref] = set()
        self.done: list[str] = []

    def strike(self) -> None:
        """The next thing happens."""
        self.heal()
        kind = self._choices.choice(KINDS)
        node_id = self._choices.choice(self._cluster.node_ids)
        getattr(self, f"_{kind}")(node_id)
        self.done.append(f"{kind} {node_id}")

    def heal(self) -> None:
        """All nodes are up."""
        self._down.close()

    def end(self) -> None:
        """All nodes are up and take data."""
        self.heal()
        self._end_draining()

    def _kill(self, node_id: str) -> None:
        self._cluster.kill(node_id)
        self._down.callback(self._cluster.restart, node_id)

    def _pause(self, node_id: str) -> None:
        self._down.enter_context(self._cluster.paused(node_id))

    def _corrupt(self, node_id: str) -> None:
        """Flip a bit of several chunks on one disk."""
        refs = [ref for ref in self._refs() if ref not in self._corrupted and self._cluster.chunk_file(node_id, ref)]
        for ref in self._choices.sample(refs, min(5, len(refs))):
            self._corrupted.add(ref)
            self._cluster.flip_bit(node_id, ref, offset=self._choices.randrange(ref.size))

    def _drain(self, node_id: str) -> None:
        self._end_draining()
        if len(self._cluster.node_ids) > 3:
            self._change("drain", node_id)
            self._draining = node_id

    def _add(self, node_id: str) -> None:
        if len(self._cluster.node_ids) < 3 + MAX_SPARES:
            self._change("add", self._cluster.add_spare())
        else:
            self._end_draining()

    def _end_draining(self) -> None:
        if self._draining:
            self._change("add", self._draining)
        self._draining = ""

    def _change(self, kind: str, node_id: str) -> None:
        try:
            self._cluster.change(self._client, kind, node_id)
        except LayoutsPending:  # On a slow machine nodes have to catch up first. All are up.
            self._cluster.await_complete(self._client)
            self._cluster.change(self._client, kind, node_id)

    def _refs(self) -> list[Ref]:
        return list(self._client.reader(self._client.stat(*parse_url(URL))).refs())


def dataset_of(cluster: LiveCluster) -> ShardedDataset:
    # Nothing is fetched further ahead than it must, or an epoch would be over before its troubles.
    return ShardedDataset(
        URL, batch_size=BATCH, shuffle=True, seed=SEED, prefetch_bytes=0, endpoints=list(cluster.endpoints), num_threads=2
    )


def seen_in(batches: Iterable[Any]) -> Iterator[bytes]:
    """What can be told of each batch: its rows and their bytes, in order."""
    for batch in batches:
        yield hashlib.blake2b(batch["row"].numpy().tobytes() + batch["blob"].numpy().tobytes(), digest_size=16).digest()


def batches_of(dataset: ShardedDataset, context: str) -> Iterable[Any]:
    if not context:
        return dataset
    return DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)


def read_in_trouble(cluster: LiveCluster, trouble: Trouble, expected: list[bytes], *, context: str, moments: set[int]) -> None:
    """Read an epoch in which something happens at these moments; each batch must be the expected one."""
    num_seen = 0
    with dataset_of(cluster) as dataset:
        for place, digest in enumerate(seen_in(batches_of(dataset, context))):
            assert digest == expected[place], f"batch {place} differs after: {', '.join(trouble.done)} (seed {SEED})"
            num_seen += 1
            if place in moments:
                trouble.strike()
        assert num_seen == len(expected)
        if not context:
            found = dataset.receipt()
            assert found["failovers"] + found["hedges"] > 0  # It was not all read before anything happened.


def test_the_stream_stays_the_same_at_fifty_moments_of_trouble(cluster: LiveCluster) -> None:
    with dataset_of(cluster) as dataset:
        expected = list(seen_in(dataset))
    assert len(set(expected)) == NUM_BATCHES
    choices = random.Random(SEED)
    with cluster.client() as client:
        trouble = Trouble(cluster, client, choices=choices)
        try:
            for context, num_moments in CASES:
                moments = set(choices.sample(range(NUM_BATCHES), num_moments))
                read_in_trouble(cluster, trouble, expected, context=context, moments=moments)
        finally:
            trouble.end()
    assert len(trouble.done) == 50
    assert {words.partition(" ")[0] for words in trouble.done} == set(KINDS)
