"""Ranks on the hosts of the nodes: what they read is at hand, and the global batches are those of everybody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from client.record import BucketPolicy
from loader.dataset import ShardedDataset
from loader.errors import InvalidOption
from loader.writer import ShardWriter
from tests.support.fake_store import FakeStore
from tests.support.near_store import NearStore

URL = "forebay://data/set"
NUM_ROWS, LANES, HOSTS, GLOBAL_BATCH = 12_300, 64, 4, 192
Rows = list[list[int]]


class NearDataset(ShardedDataset):
    """A rank's dataset on the host of its number, or on one of those after it."""

    def __init__(self, shared: FakeStore, *, moved: int = 0, **options: Any) -> None:
        defaults: dict[str, Any] = {"shuffle": True, "seed": 5, "tail": "uneven", "run_id": "run-1", "num_threads": 2}
        super().__init__(URL, **{**defaults, **options})
        self._shared, self._host = shared, f"host-node-{(self._rank + moved) % HOSTS + 1}"
        self.near: NearStore | None = None

    def _connect(self) -> NearStore:
        self.near = NearStore(self._shared, host=self._host)
        return self.near


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeStore]:
    store = FakeStore(num_nodes=HOSTS)
    store.fake_catalog.create_bucket("data", BucketPolicy(replicas=2, ack="all"))
    with ShardWriter(URL, {"row": "int64", "pad": "uint8[504]"}, "none", 8192, num_lanes=LANES, client=store) as writer:
        writer.write_batch({"row": np.arange(NUM_ROWS), "pad": np.zeros((NUM_ROWS, 504), np.uint8)})
    yield store
    store.close()


class Job:
    """All ranks of a run, each read by a thread of its own."""

    def __init__(self, shared: FakeStore, world_size: int, *, state: dict[str, Any] | None = None, **options: Any) -> None:
        self.datasets = [
            NearDataset(shared, rank=rank, world_size=world_size, **{"batch_size": GLOBAL_BATCH // world_size, **options})
            for rank in range(world_size)
        ]
        for dataset in self.datasets:
            if state is not None:
                dataset.load_state_dict(state)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for dataset in self.datasets:
            dataset.close()

    def read(self, *, batches: int | None = None) -> list[Rows]:
        """Of each rank, the rows of each batch, up to the end of the epoch or as many."""

        def rows_of(dataset: ShardedDataset) -> Rows:
            return [batch["row"].tolist() for _, batch in zip(range(batches or 1 << 30), dataset, strict=False)]

        with ThreadPoolExecutor(len(self.datasets)) as pool:
            return list(pool.map(rows_of, self.datasets))

    def states(self) -> list[dict[str, Any]]:
        return [dataset.state_dict() for dataset in self.datasets]

    @property
    def read_amplification(self) -> float:
        blocks = sum(dataset.receipt()["blocks"] for dataset in self.datasets)
        return float(blocks / self.datasets[0].reader.num_blocks)

    @property
    def local_share(self) -> float:
        reads = [dataset.near.chunks.reads for dataset in self.datasets if dataset.near is not None]
        local = sum(counted.local_bytes for counted in reads)
        return local / (local + sum(counted.http_bytes for counted in reads))


def said(dataset: ShardedDataset) -> str:
    (warning,) = dataset.receipt()["warnings"]
    return str(warning)


def merged(ranks: list[Rows]) -> list[set[int]]:
    """The rows of each global batch."""
    batches = [set[int]() for _ in range(max(map(len, ranks)))]
    for rows in ranks:
        for batch, mine in zip(batches, rows, strict=False):
            assert not batch & set(mine), "two ranks have the same row"
            batch.update(mine)
    return batches


@pytest.fixture(scope="module")
def expected(shared: FakeStore) -> list[set[int]]:
    """The global batches of an epoch without locality."""
    with Job(shared, 4) as job:
        batches = merged(job.read())
        assert job.local_share < 0.8  # Else the tests below would show nothing.
    assert sorted(row for batch in batches for row in batch) == list(range(NUM_ROWS))
    return batches


def test_ranks_read_what_lies_on_their_hosts(shared: FakeStore, expected: list[set[int]]) -> None:
    with Job(shared, 4, locality=True) as job, Job(shared, 1) as alone:
        assert merged(job.read()) == merged(alone.read()) == expected
        assert job.local_share >= 0.95
        assert job.read_amplification <= 1.02
        assert merged(job.read()) == merged(alone.read()) != expected
        assert job.local_share >= 0.95


def test_three_ranks_of_four_hosts_read_little_twice(shared: FakeStore, expected: list[set[int]]) -> None:
    with Job(shared, 3, locality=True) as job:
        assert merged(job.read()) == expected
        assert job.read_amplification <= 1.3
        assert job.local_share >= 0.9


def test_the_state_is_small_and_alike_and_the_same_ranks_go_on_with_their_rows(shared: FakeStore) -> None:
    with Job(shared, 4, locality=True) as job:
        whole = job.read()
        assert {state["lane_map"] for state in job.states()} == {"placed"}
    with Job(shared, 4, locality=True) as job:
        begun = job.read(batches=20)
        states = job.states()
    assert all(state == states[0] for state in states)
    assert states[0]["lane_map"].startswith("placed:run-1:4:")
    assert len(json.dumps(states[0])) < 1024
    # Started again on other hosts, on which the ranks would choose other lanes.
    with Job(shared, 4, locality=True, run_id="run-2", moved=1, state=json.loads(json.dumps(states[0]))) as job:
        assert [begun_rows + rows for begun_rows, rows in zip(begun, job.read(), strict=True)] == whole


@pytest.mark.parametrize(("world_size", "locality"), [(1, True), (2, False), (6, True)])
def test_other_ranks_go_on_with_the_same_global_batches(
    shared: FakeStore, expected: list[set[int]], world_size: int, locality: bool
) -> None:
    with Job(shared, 4, locality=True) as job:
        job.read(batches=40)
        state = job.states()[0]
    with Job(shared, world_size, locality=locality, run_id="run-3", state=state) as job:
        assert merged(job.read()) == expected[40:]


def test_a_state_without_locality_is_taken_up_with_it(shared: FakeStore, expected: list[set[int]]) -> None:
    with Job(shared, 4) as job:
        job.read(batches=40)
        state = job.states()[0]
    with Job(shared, 4, locality=True, run_id="run-4", state=state) as job:
        assert merged(job.read()) == expected[40:]
        assert job.states()[0]["lane_map"] == "placed"


def test_lanes_that_do_not_divide_the_batch_stay_in_order(shared: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    with Job(shared, 4, batch_size=50) as job:
        usual = job.read(batches=5)
    with Job(shared, 4, batch_size=50, locality=True) as job:
        assert merged(job.read(batches=5)) == merged(usual)
        assert {state["lane_map"] for state in job.states()} == {"fixed"}
        assert all("64 lanes do not divide a global batch of 200 rows" in said(dataset) for dataset in job.datasets)
    assert "forebay://data/set: ranks take its lanes in order" in caplog.text


def test_a_single_rank_needs_no_run(shared: FakeStore, expected: list[set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with Job(shared, 1, locality=True, run_id=None) as job:
        assert merged(job.read(batches=3)) == expected[:3]
    with pytest.raises(InvalidOption, match="give run_id="):
        NearDataset(shared, rank=0, world_size=2, batch_size=1, locality=True, run_id=None)


def test_more_ranks_than_lanes_are_warned_of(shared: FakeStore) -> None:
    with NearDataset(shared, rank=3, world_size=128, batch_size=1) as dataset:
        next(iter(dataset))
        assert said(dataset).startswith("128 ranks share 64 lanes: each block is fetched by about 2.0 ranks")
    with NearDataset(shared, rank=3, world_size=64, batch_size=1) as dataset:
        next(iter(dataset))
        assert dataset.receipt()["warnings"] == []
