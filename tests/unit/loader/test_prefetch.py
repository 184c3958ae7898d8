"""The stager: stages in order, blocks ahead of them within a budget, errors at once, and no thread left behind."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import AllReplicasFailed
from client.replica import ReadTotals
from loader import prefetch
from loader.assignment import Split
from loader.cache import DiskCache
from loader.daemon_pool import DaemonPool
from loader.errors import BlockCorrupt
from loader.handoff import HandOff, StreamClosed
from loader.jobs import Job
from loader.mixture import Component, Mixture
from loader.opened import OpenDataset, OpenStream
from loader.reader import DatasetReader
from loader.receipt import Meters, Receipt
from loader.stage import Epochs, Stage, StreamSpec
from loader.stager import Stager
from tests.support.memory_store import MemoryStore, dataset_bytes, nothing_in_memory, open_reader

DEADLINE_S = 20.0
ROW_BYTES = 128
CONTENT = dataset_bytes(
    {"row": "int64", "data": "uint8[120]"},
    {"row": np.arange(800), "data": np.zeros((800, 120), np.uint8)},
    num_lanes=8,
    block_size_bytes=1024,
    compression="none",
)
BLOCK_ROWS, NUM_BLOCKS = 8, 8 * 13


def spec(*, num_rows: int = 800, num_lanes: int = 8, batch_size: int = 8, **options: Any) -> StreamSpec:
    values: dict[str, Any] = {
        "split": Split(
            rank=0, rotate=True, num_rows=num_rows, num_lanes=num_lanes, world_size=1, batch_size=batch_size, tail="pad"
        ),
        "epoch": 0,
        "start": 0,
        "first": 0,
        "step": 1,
        "follow": False,
        "with_index": False,
        "seed": 0,
        "shuffle": False,
        "prefetch_bytes": 0,
        "num_threads": 1,
    }
    return StreamSpec(**{**values, **options})


class Whole:
    """Hands stages over as they are."""

    in_threads = False

    def jobs_of(self, stage: Stage) -> Iterator[Job[Stage]]:
        yield Job(pieces=(), finish=lambda: stage)


def open_stream(reader: DatasetReader, columns: tuple[int, ...] = (0, 1)) -> OpenStream:
    return OpenStream.of([OpenDataset(store=MemoryStore({}), reader=reader, columns=columns)])


def stager(source: DatasetReader | OpenStream, wanted: StreamSpec) -> Stager[Stage]:
    epochs = Epochs(
        lane_order_of=lambda epoch: (),
        maker_of=lambda epoch: Whole(),
        receipt_of=lambda epoch: Receipt(epoch=epoch, blocks_per_sample=1.0, meters=Meters(store=ReadTotals)),
    )
    return Stager(open_stream(source) if isinstance(source, DatasetReader) else source, wanted, epochs)


def drain(stages: Stager[Stage]) -> list[Stage]:
    found = []
    while (stage := stages.next()) is not None:
        found.append(stage)
    return found


def rows_of(stages: list[Stage]) -> list[int]:
    return [row for stage in stages for row in np.asarray(stage.columns[0]).tolist()]


@pytest.mark.parametrize("is_in_memory", [True, False])
def test_little_that_lies_in_the_cache_takes_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_memory: bool
) -> None:
    reader, _ = open_reader(CONTENT)
    reader.cache = cache = DiskCache(tmp_path, digest=reader.index.digest, limit_bytes=1 << 24)
    with closing(cache):
        with stager(reader, spec()) as stages:
            assert sorted(rows_of(drain(stages))) == list(range(800))
            assert stages.receipt().to_dict()["bytes_cache"] == 0
        submit, submitted = DaemonPool.submit, 0

        def counted(*args: Any) -> Any:
            nonlocal submitted
            submitted += 1
            return submit(*args)

        monkeypatch.setattr(DaemonPool, "submit", counted)
        if not is_in_memory:
            nothing_in_memory(monkeypatch)
        with stager(reader, spec()) as stages:
            assert sorted(rows_of(drain(stages))) == list(range(800))
            receipt = stages.receipt().to_dict()
            assert (receipt["blocks"], receipt["bytes_cache"]) == (NUM_BLOCKS, 800 * ROW_BYTES)
        assert bool(submitted) == (not is_in_memory)


class Gate:
    """Lets `num_blocks` reads of blocks through, and holds back later ones until it is opened."""

    def __init__(self, reader: DatasetReader, store: MemoryStore, *, num_blocks: int) -> None:
        self._left = num_blocks
        self._changed = threading.Condition()
        self.num_asked = 0
        for lane in range(reader.index.num_lanes):
            reader.table(lane)
        store.before_read = self.before_read

    def before_read(self, start: int, end: int) -> None:
        with self._changed:
            self.num_asked += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._left > 0, DEADLINE_S)
            self._left -= 1

    def let(self, num_blocks: int) -> None:
        with self._changed:
            self._left += num_blocks
            self._changed.notify_all()

    def wait_asked(self, num_blocks: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_asked >= num_blocks, DEADLINE_S)


def test_stages_bring_every_row_once_in_order() -> None:
    reader, _ = open_reader(CONTENT)
    with stager(reader, spec(with_index=True)) as stages:
        found = drain(stages)
    rows = rows_of(found)
    assert sorted(rows) == list(range(800))
    assert [number for stage in found for number in (stage.numbers if stage.numbers is not None else [])] == rows
    assert [number for stage in found for number in stage.batches] == list(range(100))


def test_first_stage_needs_the_blocks_of_one_batch_only() -> None:
    reader, store = open_reader(CONTENT)
    gate = Gate(reader, store, num_blocks=2)
    with stager(reader, spec(batch_size=2, prefetch_bytes=1 << 20)) as stages:
        first = stages.next()
        assert first is not None
        assert first.ends == [2]
        gate.let(NUM_BLOCKS)
        assert len(rows_of([first, *drain(stages)])) == 800


# A slot is 8 rows of 128 bytes, and 8 more for each row.
@pytest.mark.parametrize(("prefetch_bytes", "ahead"), [(0, 0), (1087, 0), (20 * 1088, 20), (1 << 20, 2 * NUM_BLOCKS - 16)])
def test_blocks_are_fetched_ahead_within_the_budget(prefetch_bytes: int, ahead: int) -> None:
    reader, store = open_reader(CONTENT)
    gate = Gate(reader, store, num_blocks=NUM_BLOCKS)
    opened = open_stream(reader)
    with stager(opened, spec(prefetch_bytes=prefetch_bytes)) as stages:
        first = stages.next()
        assert first is not None
        # The open ones, and at least half of the others: stages are planned as a whole, and the next one may not fit.
        gate.wait_asked(min(8 + (8 + ahead) // 2, NUM_BLOCKS))
        drain(stages)
    # Two for each lane, those ahead, and one for a repeated row.
    assert opened.arena.num_slots == 16 + ahead + 1
    assert gate.num_asked == NUM_BLOCKS


def test_training_loop_that_waits_long_finds_stages_ready_and_memory_bounded() -> None:
    reader, store = open_reader(CONTENT)
    gate = Gate(reader, store, num_blocks=NUM_BLOCKS)
    with stager(reader, spec(batch_size=8)) as stages:
        # Eight lanes of eight rows, twice; then the third visits need slots that only the training loop can free.
        gate.wait_asked(16)
        assert gate.num_asked < 40
        assert sorted(rows_of(drain(stages))) == list(range(800))


def test_only_the_columns_asked_for_are_fetched() -> None:
    reader, store = open_reader(CONTENT)
    Gate(reader, store, num_blocks=NUM_BLOCKS)
    store.reads.clear()
    with stager(open_stream(reader, (0,)), spec()) as stages:
        assert sorted(rows_of(drain(stages))) == list(range(800))
    assert sum(end - start for start, end in store.reads) == 800 * 8


def test_workers_of_a_loader_read_their_own_batches_only() -> None:
    reader, _ = open_reader(CONTENT)
    with stager(reader, spec()) as stages:
        alone = drain(stages)
    batches = [batch for stage in alone for batch in np.split(np.asarray(stage.columns[0]), stage.ends[:-1])]
    for worker in range(3):
        with stager(reader, spec(first=worker, step=3)) as stages:
            mine = drain(stages)
        assert [number for stage in mine for number in stage.batches] == list(range(worker, 100, 3))
        assert rows_of(mine) == [row for batch in batches[worker::3] for row in batch.tolist()]


def test_batch_that_needs_more_slots_than_there_are_gets_them() -> None:
    reader, _ = open_reader(CONTENT)
    opened = open_stream(reader)
    with stager(opened, spec(batch_size=500)) as stages:
        found = drain(stages)
    assert sorted(rows_of(found)) == list(range(800))
    assert [stage.ends for stage in found] == [[500], [300]]
    assert opened.arena.num_slots > 17


def test_arena_serves_one_stream_after_another() -> None:
    reader, _ = open_reader(CONTENT)
    opened = open_stream(reader)
    for epoch in range(3):
        with stager(opened, spec(epoch=epoch, shuffle=True, batch_size=500)) as stages:
            assert sorted(rows_of(drain(stages))) == list(range(800))


def test_stages_are_small_enough_where_values_vary_in_length() -> None:
    values = [bytes(40_000)] * 300
    reader, _ = open_reader(
        dataset_bytes({"data": "bytes"}, {"data": values}, num_lanes=2, block_size_bytes=1 << 20, compression="none")
    )
    with stager(open_stream(reader, (0,)), spec(num_rows=300, num_lanes=2, batch_size=1)) as stages:
        assert max(len(stage.columns[0]) for stage in drain(stages)) <= prefetch.STAGE_BYTES // 40_000


def test_error_of_a_fetch_overtakes_stages_that_are_ready() -> None:
    reader, store = open_reader(CONTENT)
    gate = Gate(reader, store, num_blocks=NUM_BLOCKS)
    last = reader.index.table_offsets[0] - 1024

    def before_read(start: int, end: int) -> None:
        gate.before_read(start, end)
        if start >= last:
            raise AllReplicasFailed("chunk 9 can't be read", key="9")

    store.before_read = before_read
    with stager(reader, spec(prefetch_bytes=1 << 20)) as stages:
        gate.wait_asked(NUM_BLOCKS)
        with pytest.raises(AllReplicasFailed, match="chunk 9"):
            drain(stages)
        with pytest.raises(AllReplicasFailed):
            stages.next()


def test_error_in_a_table_reaches_the_training_loop() -> None:
    damaged = bytearray(CONTENT)
    damaged[open_reader(CONTENT)[0].index.table_offsets[3]] ^= 1
    with stager(open_reader(bytes(damaged))[0], spec()) as stages, pytest.raises(Exception, match="lane 3: the block table"):
        drain(stages)
    damaged = bytearray(CONTENT)
    damaged[0] ^= 1
    with stager(open_reader(bytes(damaged))[0], spec()) as stages, pytest.raises(BlockCorrupt, match="lane 0, block 0"):
        drain(stages)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("forebay-")]


def test_closing_ends_the_threads_wherever_they_are() -> None:
    reader, store = open_reader(CONTENT)
    for prefetch_bytes, taken in ((0, 0), (0, 1), (1 << 20, 3)):
        with stager(reader, spec(prefetch_bytes=prefetch_bytes, num_threads=3)) as stages:
            for _ in range(taken):
                stages.next()
        assert own_threads() == []
        with pytest.raises(StreamClosed):
            stages.next()
        stages.close()
    gate = Gate(reader, store, num_blocks=0)
    with stager(reader, spec(num_threads=2)) as stages:
        gate.wait_asked(2)
        closing = threading.Thread(target=stages.close)
        closing.start()
        gate.let(NUM_BLOCKS)
        closing.join()
    assert own_threads() == []


def test_interrupt_while_the_threads_start_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stager(open_reader(CONTENT)[0], spec())
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "forebay-stager":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), stages:
        pass
    assert own_threads() == []


def test_stager_that_a_thread_of_its_own_closes_does_not_wait_for_itself() -> None:
    # As happens when the garbage collector finds a forgotten iterator while a block is being fetched.
    reader, store = open_reader(CONTENT)
    stages = stager(reader, spec())
    store.before_read = lambda start, end: stages.close()
    with stages, pytest.raises(StreamClosed):
        drain(stages)
    assert own_threads() == []


def test_hand_off_waits_for_room_and_for_items() -> None:
    queue: HandOff[int] = HandOff(limit=2)
    assert queue.is_empty
    queue.put(1)
    queue.put(2)
    third = threading.Thread(target=queue.put, args=(3,))
    third.start()
    assert [queue.get(), queue.get(), queue.get()] == [1, 2, 3]
    third.join()
    queue.put(4)
    queue.fail(ValueError("first"))
    queue.fail(ValueError("second"))
    with pytest.raises(ValueError, match="first"):
        queue.get()
    queue.close()
    for call in (queue.get, lambda: queue.put(5)):
        with pytest.raises(StreamClosed):
            call()


def test_rows_of_a_mixture_come_in_the_epochs_of_their_datasets() -> None:
    shapes, parts = ((10, 2), (33, 4)), []
    for num_rows, num_lanes in shapes:
        rows = np.arange(num_rows)
        parts.append(open_reader(dataset_bytes({"row": "int64"}, {"row": rows}, num_lanes=num_lanes))[0])
    components = tuple(
        Component(digest=part.index.digest, num_rows=num_rows, num_lanes=num_lanes, weight=2048)
        for part, (num_rows, num_lanes) in zip(parts, shapes, strict=True)
    )
    mixture = Mixture(components=components, seed=0, epoch_samples=100)
    opened = OpenStream.of([OpenDataset(store=MemoryStore({}), reader=part, columns=(0,)) for part in parts], mixture=mixture)
    wanted = spec(num_rows=100, num_lanes=6, with_index=True, shuffle=True, follow=True)
    wanted = replace(wanted, split=replace(wanted.split, mixture=mixture))
    seen = defaultdict(list)
    with stager(opened, wanted) as stages:
        for epoch in range(3):
            assert epoch == 0 or stages.take_over(opened, replace(wanted, epoch=epoch))
            for stage in drain(stages):
                assert stage.components is not None
                assert stage.epochs is not None
                rows = np.asarray(stage.columns[0]).tolist()
                for place in zip(stage.components.tolist(), stage.epochs.tolist(), rows, strict=True):
                    seen[place[:2]].append(place[2])
    for number, (num_rows, _) in enumerate(shapes):
        *whole, last = sorted(epoch for component, epoch in seen if component == number)
        assert whole == list(range(last))
        assert all(sorted(seen[number, epoch]) == list(range(num_rows)) for epoch in whole)
        assert len(set(seen[number, last])) == len(seen[number, last])
