"""The stream of samples over real nodes: the same whoever reads it, also when a node dies on the way and on resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from loader import MixedDataset, ShardedDataset, ShardWriter
from tests.support.cluster import LiveCluster

URL, OTHER_URL = "forebay://data/numbers", "forebay://data/others"
ROWS = 3001
GLOBAL_BATCH = 12


def _write(cluster: LiveCluster, url: str = URL, *, rows: int = ROWS) -> None:
    with ShardWriter(
        url,
        columns={"number": "int64", "text": "str"},
        num_lanes=16,
        block_size_bytes=1024,
        endpoints=list(cluster.endpoints),
    ) as writer:
        writer.write_batch({"number": np.arange(rows), "text": [f"row {number}" for number in range(rows)]})


def _dataset(cluster: LiveCluster, rank: int, world_size: int, *, prefetch_bytes: int = 0) -> ShardedDataset:
    return ShardedDataset(
        URL,
        batch_size=GLOBAL_BATCH // world_size,
        shuffle=True,
        seed=3,
        rank=rank,
        world_size=world_size,
        tail="uneven",
        prefetch_bytes=prefetch_bytes,
        endpoints=list(cluster.endpoints),
    )


def _named(batch: Any) -> list[tuple[int, int]]:
    """Dataset and number of each row that is no repetition; its text is checked on the way."""
    numbers = batch["number"].tolist()
    assert batch["text"] == [f"row {number}" for number in numbers]
    assert batch["_index"].tolist() == numbers
    pad = batch["_pad"].tolist() if "_pad" in batch else [False] * len(numbers)
    rows = zip(batch["_component"].tolist(), numbers, pad, strict=True)
    return [(component, number) for component, number, repeated in rows if not repeated]


def _mixture(cluster: LiveCluster, rank: int, world_size: int) -> MixedDataset:
    return MixedDataset(
        [URL, OTHER_URL],
        weights=[3, 1],
        epoch_samples=1200,
        batch_size=GLOBAL_BATCH // world_size,
        shuffle=True,
        seed=3,
        rank=rank,
        world_size=world_size,
        with_index=True,
        endpoints=list(cluster.endpoints),
    )


def _global_batches(cluster: LiveCluster, world_size: int, *, state: dict[str, object] | None = None) -> list[frozenset[int]]:
    """The rows of each global batch of one epoch, gathered over all ranks; each row's text is checked on the way."""
    batches: dict[int, set[int]] = {}
    for rank in range(world_size):
        with _dataset(cluster, rank, world_size) as dataset:
            if state is not None:
                dataset.load_state_dict(state)
            for place, batch in enumerate(dataset):
                rows = batch["number"].tolist()
                assert batch["text"] == [f"row {number}" for number in rows]
                assert not batches.setdefault(place, set()) & set(rows), "two ranks have the same row"
                batches[place] |= set(rows)
    return [frozenset(batches[place]) for place in sorted(batches)]


def test_the_global_batches_do_not_depend_on_ranks_dead_nodes_or_resuming(cluster: LiveCluster) -> None:
    _write(cluster)
    expected = _global_batches(cluster, 1)
    assert sorted(row for batch in expected for row in batch) == list(range(ROWS))
    assert _global_batches(cluster, 3) == expected
    half = len(expected) // 2
    with _dataset(cluster, 0, 1) as dataset:
        seen = []
        for place, batch in enumerate(dataset):
            if place == half // 2:
                cluster.kill(cluster.node_ids[0])
            seen.append(frozenset(batch["number"].tolist()))
            if place + 1 == half:
                break
        state = dataset.state_dict()
    assert seen == expected[:half]
    assert _global_batches(cluster, 4, state=state) == expected[half:]


def test_a_mixture_goes_on_in_another_geometry_over_several_epochs(cluster: LiveCluster) -> None:
    _write(cluster)
    _write(cluster, OTHER_URL, rows=101)
    with _mixture(cluster, 0, 1) as dataset:
        epochs = [[_named(batch) for batch in dataset] for _ in range(3)]
    assert Counter(component for epoch in epochs for batch in epoch for component, _ in batch).keys() == {0, 1}
    with _mixture(cluster, 0, 1) as dataset:
        assert [_named(batch) for batch in dataset] == epochs[0]
        assert [_named(batch) for _, batch in zip(range(31), dataset, strict=False)] == epochs[1][:31]
        state = dataset.state_dict()
    ranks = []
    for rank in range(3):
        with _mixture(cluster, rank, 3) as dataset:
            dataset.load_state_dict(state)
            ranks.append([_named(batch) for _ in range(2) for batch in dataset])
    assert [sorted(row for part in parts for row in part) for parts in zip(*ranks, strict=True)] == [
        sorted(batch) for batch in [*epochs[1][31:], *epochs[2]]
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method_read_epoch_after_epoch(cluster: LiveCluster, context: str) -> None:
    _write(cluster)
    with _dataset(cluster, 0, 1) as alone, _dataset(cluster, 0, 1) as dataset:
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context, persistent_workers=True)
        for _ in range(3):
            expected = [batch["number"].tolist() for batch in alone]
            assert [batch["number"].tolist() for batch in loader] == expected
        state = dataset.state_at(batches=100)
    with _dataset(cluster, 0, 1) as dataset:
        dataset.load_state_dict(state)
        assert [batch["number"].tolist() for batch in dataset] == expected[100:]


MEASURED = """
import json, sys
from loader import ShardedDataset
def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
options = {"batch_size": 64, "shuffle": True, "prefetch_bytes": 4 << 20, "num_threads": 2}
with ShardedDataset(sys.argv[1], endpoints=json.loads(sys.argv[2]), **options) as dataset:
    stream = iter(dataset)
    next(stream)
    peaks = [peak_kb()]
    for _ in stream:
        pass
    peaks.append(peak_kb())
    for _ in range(4):
        for _ in dataset:
            pass
        peaks.append(peak_kb())
    print(json.dumps({"peaks": peaks, "slots": dataset._open().arena.num_slots, "slot_bytes": dataset._open().slot_bytes}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_grows_neither_with_the_data_nor_with_the_epochs(cluster: LiveCluster) -> None:
    block_bytes, lanes, measured = 64 << 10, 16, {}
    for name, rows in (("small", 8_000), ("large", 80_000)):
        url = f"forebay://data/{name}"
        with ShardWriter(url, {"data": "uint8[2048]"}, "none", block_bytes, lanes, endpoints=list(cluster.endpoints)) as writer:
            for first in range(0, rows, 4_000):
                writer.write_batch({"data": np.full((4_000, 2048), first % 251, np.uint8)})
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, url, json.dumps(list(cluster.endpoints))],
            capture_output=True,
            text=True,
            check=True,
        )
        measured[name] = json.loads(run.stdout)
    small, large = measured["small"], measured["large"]
    assert small["slots"] == large["slots"]
    # Twice the open blocks, what is fetched ahead, and one for a repeated row.
    assert large["slots"] * large["slot_bytes"] <= 2 * lanes * large["slot_bytes"] + (4 << 20) + large["slot_bytes"]
    after_first_batch, after_first_epoch, *later = large["peaks"]
    # Slots of 6 MiB, some staging buffers of 4 MiB; the data are 160 MiB, and 800 over five epochs.
    assert after_first_epoch - after_first_batch < 32 * 1024
    assert later[-1] - after_first_epoch < 8 * 1024
    assert later[-1] - small["peaks"][-1] < 8 * 1024
