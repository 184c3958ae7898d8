"""Epochs without a pause: the next one's first blocks are there before this one ends, and no thread outlives the dataset."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from client.errors import AllReplicasFailed
from loader.assignment import Assignment, run_of_rank
from loader.handoff import HandOff
from loader.order import LaneOrder
from tests.support.memory_store import MemoryDataset, dataset_bytes, keep_nothing

DEADLINE_S = 20.0
ROWS, LANES = 400, 8
CONTENT = dataset_bytes(
    {"row": "int64", "data": "uint8[120]"},
    {"row": np.arange(ROWS), "data": np.zeros((ROWS, 120), np.uint8)},
    num_lanes=LANES,
    compression="none",
)
BATCHES = 50


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_nothing(monkeypatch)


def dataset(**options: Any) -> MemoryDataset:
    return MemoryDataset(CONTENT, **{"batch_size": 8, "shuffle": True, "seed": 5, "num_threads": 2, **options})


def rows(batches: Iterable[Any]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forebay-")]


EPOCHS = [rows(epoch) for source in [dataset()] for epoch in [source] * 5]


class Watch:
    """Counts the reads of each range; once it is shut, reads wait until it is opened."""

    def __init__(self, source: MemoryDataset) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()
        self._shut = False
        self._changed = threading.Condition()
        len(source)
        assert source.store is not None
        source.store.before_read = self.before_read

    def before_read(self, start: int, end: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._shut, DEADLINE_S)
            self.counts[start, end] += 1
            self._changed.notify_all()

    def wait_for(self, ranges: Iterable[tuple[int, int]], *, times: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: all(self.counts[place] >= times for place in ranges), DEADLINE_S)

    def shut(self, shut: bool) -> None:
        with self._changed:
            self._shut = shut
            self._changed.notify_all()


def blocks_of(source: MemoryDataset, epoch: int, *, batches: int, rank: int = 0, world_size: int = 1) -> set[tuple[int, int]]:
    """Where the blocks lie that the rank's first batches of an epoch need."""
    reader, ranges = source.reader, set()
    assignment = Assignment(num_rows=ROWS, num_lanes=LANES, world_size=world_size, batch_size=8)
    share = assignment.share(0, run=run_of_rank(rank, epoch=epoch, world_size=world_size, rotate=True), count=batches)
    for lane, step in zip(share.lanes.tolist(), share.steps.tolist(), strict=True):
        table = reader.table(lane)
        order = LaneOrder(digest=source.digest, seed=5, epoch=epoch, lane=lane, block_rows=table.rows)
        block = int(order.visits[order.locate([step])[0][0]])
        start = reader.index.lanes[lane].offset + int(table.offsets[block, 0])
        ranges.add((start, start + int(table.stored_size[block].sum())))
    return ranges


@pytest.mark.parametrize("prefetch_bytes", [0, 10_000, 1 << 20])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_first_batch_of_the_next_epoch_needs_no_fetch_begun_after_the_last_of_this(
    prefetch_bytes: int, rank: int, world_size: int
) -> None:
    source = dataset(prefetch_bytes=prefetch_bytes, rank=rank, world_size=world_size)
    other = dataset(rank=rank, world_size=world_size)
    expected = [rows(other), rows(other)]
    before = blocks_of(source, 0, rank=rank, world_size=world_size, batches=BATCHES // world_size)
    needed = blocks_of(source, 1, rank=rank, world_size=world_size, batches=1)
    watch = Watch(source)
    stream = iter(source)
    found = [next(stream)["row"].tolist() for _ in range(BATCHES // world_size - 1)]
    watch.wait_for(needed & before, times=2)
    watch.wait_for(needed - before, times=1)
    watch.shut(True)
    found += rows(stream)
    assert found == expected[0]
    stream = iter(source)
    assert next(stream)["row"].tolist() == expected[1][0]
    watch.shut(False)
    source.close()


def test_epochs_that_follow_each_other_are_those_read_alone_within_the_same_memory() -> None:
    source = dataset(prefetch_bytes=10_000)
    slots, threads = set[int](), set[int | None]()
    for epoch, expected in enumerate(EPOCHS):
        assert rows(source) == expected
        assert source._opened is not None
        slots.add(source._opened.arena.num_slots)
        threads.update(thread.ident for thread in threading.enumerate() if thread.name == "forebay-stager")
        alone = dataset()
        alone.set_epoch(epoch)
        assert rows(alone) == expected
        alone.close()
    assert len(slots) == 1
    assert len(threads) == 1
    source.close()


@pytest.mark.parametrize("num_rows", [ROWS, 8])
def test_epoch_that_nobody_reads_yet_costs_about_a_block_of_each_lane(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Semaphore(0)
    wait_for = HandOff.wait_for

    def noted_wait(queue: HandOff[Any], condition: Callable[[], bool]) -> None:
        waits.release()
        wait_for(queue, condition)

    monkeypatch.setattr(HandOff, "wait_for", noted_wait)
    values = {"row": np.arange(num_rows), "data": np.zeros((num_rows, 1016), "u1")}
    content = dataset_bytes({"row": "int64", "data": "uint8[1016]"}, values, compression="none")  # A block is a row.
    source = MemoryDataset(content, batch_size=8, shuffle=True, prefetch_bytes=1 << 20)
    watch = Watch(source)
    for epoch in range(3):
        assert len(rows(source)) == num_rows // 8
        assert waits.acquire(timeout=DEADLINE_S)
        blocks = sum(count for (start, end), count in watch.counts.items() if end - start == 1024)
        assert blocks == num_rows * (epoch + 1) + 8
    source.close()


def test_receipt_of_an_epoch_counts_its_own_blocks_whenever_they_were_fetched() -> None:
    source = dataset(prefetch_bytes=1 << 20)
    for epoch in range(3):
        assert rows(source) == EPOCHS[epoch]
        receipt = source.receipt()
        assert (receipt["epoch"], receipt["samples"], receipt["blocks"]) == (epoch, ROWS, source.reader.num_blocks)
    source.close()


def test_jump_to_another_epoch_begins_there() -> None:
    source = dataset()
    assert rows(source) == EPOCHS[0]
    source.set_epoch(3)
    assert rows(source) == EPOCHS[3]
    source.set_epoch(4)
    assert rows(source) == EPOCHS[4]
    state = {**source.state_dict(), "epoch": 1, "samples_consumed": 8}
    source.load_state_dict(state)
    assert own_threads() == []
    assert rows(source) == EPOCHS[1][1:]
    source.close()


def test_error_in_what_the_next_epoch_begins_with_is_the_next_epochs() -> None:
    source = dataset(prefetch_bytes=1 << 20)
    watch = Watch(source)
    # Of which the first read is this epoch's: what this one needs at its end the next one may read before it.
    needed = blocks_of(source, 1, batches=1) & blocks_of(source, 0, batches=20)
    assert needed
    failed = threading.Event()

    def fail(start: int, end: int) -> None:
        watch.before_read(start, end)
        if (start, end) in needed and watch.counts[start, end] > 1:
            failed.set()
            raise AllReplicasFailed("chunk 5 can't be read", key="5")

    assert source.store is not None
    source.store.before_read = fail
    stream = iter(source)
    found = [next(stream)["row"].tolist()]
    assert failed.wait(DEADLINE_S)
    assert found + rows(stream) == EPOCHS[0]
    with pytest.raises(AllReplicasFailed, match="chunk 5"):
        next(iter(source))
    assert own_threads() == []
    source.store.before_read = lambda start, end: None
    assert (source.epoch, rows(source)) == (1, EPOCHS[1])
    source.close()


# No thread outlives the dataset


def test_threads_end_with_the_dataset() -> None:
    source = dataset()
    assert rows(source) == EPOCHS[0]
    assert own_threads() != []
    source.close()
    assert own_threads() == []
    assert rows(source) == EPOCHS[1]
    del source
    assert own_threads() == []
    # Also where only the garbage collector finds it.
    source = dataset()
    source.itself = source  # type: ignore[attr-defined]
    rows(source)
    del source
    gc.collect()
    assert own_threads() == []


def test_forked_process_has_its_own_stream_and_ends_without_the_parents_threads() -> None:
    source = dataset(prefetch_bytes=1 << 20)
    assert rows(source) == EPOCHS[0]
    child = os.fork()
    if child == 0:
        try:
            found = rows(source)
            ended = own_threads()
            source.close()
            del source
            os._exit(0 if found == EPOCHS[1] and len(ended) > 1 and own_threads() == [] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert rows(source) == EPOCHS[1]
    source.close()


EXIT_SCRIPT = """
import atexit
atexit.register(lambda: print(num_reads))  # Runs last.
num_reads = 0
import threading
from loader.opened import OpenStream
from tests.unit.loader.test_next_epoch import dataset
OpenStream.reuse = lambda self, visit: False
exiting = threading.Event()
atexit.register(exiting.set)
source = dataset(num_threads=1, prefetch_bytes=1 << 20)
blocks = source.reader.num_blocks
stream = iter(source)
def before_read(start, end):
    global num_reads
    num_reads += 1
    if num_reads > tables + blocks:
        waiting.set()
        exiting.wait()
tables, waiting = 1, threading.Event()
source.store.before_read = before_read
print(len(list(stream)))
waiting.wait()
"""


def test_interpreter_exits_without_fetching_what_was_planned() -> None:
    # A fetch of the next epoch is under way until the exit has begun; of all that wait for their turn, none is made.
    run = subprocess.run([sys.executable, "-c", EXIT_SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    blocks = dataset().reader.num_blocks
    assert (run.stdout.split(), run.stderr) == ([str(BATCHES), str(1 + blocks + 1)], "")
