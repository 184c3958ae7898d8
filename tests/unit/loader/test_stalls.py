"""A wait that lasts is told of while it lasts: for which block, asked of which node, since when."""

from __future__ import annotations

import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from client.manifest import make_ref
from client.replica import UnderWay
from loader.handoff import HandOff, StillWaiting
from tests.support.memory_store import MemoryDataset, dataset_bytes

WAIT_S = 10.0
REF = make_ref(b"chunk", partitions=4)
CONTENT = dataset_bytes({"row": "int64"}, {"row": np.arange(100)}, num_lanes=2)


def test_the_log_and_the_receipt_say_what_a_long_wait_is_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loader.stager._STALL_S", 0.02)
    go_on = threading.Event()
    with MemoryDataset(CONTENT, batch_size=10, num_threads=2) as dataset, ThreadPoolExecutor(1) as pool:
        len(dataset)
        assert dataset.store is not None
        for lane in range(2):
            dataset.reader.table(lane)
        dataset.store.before_read = lambda start, end: None if go_on.wait(WAIT_S) else pytest.fail("not released")
        dataset.store.waiting = [
            UnderWay(ref=REF, asked_s={"n1": 3.0, "n2": 1.5}),
            UnderWay(ref=REF, asked_s={"n3": 7.0}),
            UnderWay(ref=REF, asked_s={}),
        ]
        with caplog.at_level(logging.WARNING):
            reading = pool.submit(list, dataset)
            while len(caplog.records) < 2:
                wait([reading], timeout=0.01)
                assert not reading.done()
        go_on.set()
        assert len(reading.result(WAIT_S)) == 10
        first = caplog.records[0].getMessage()
        assert first.startswith("forebay://data/set, epoch 0: the training loop has waited 0 s for data; ")
        for block in ("lane 0, block 0", "lane 1, block 0"):
            assert re.search(rf"forebay://data/set, {block} for 0\.\d s", first)
        assert first.endswith(f"chunk {REF} of node n3 for 7.0 s; chunk {REF} of node n1 for 3.0 s, node n2 for 1.5 s")
        told = dataset.receipt()["stalls"]
        assert len(told) >= 2
        assert all(f"chunk {REF} of node n3" in words for words in told)
        assert dataset.reader.waits()[0].startswith("chunk ")  # No block any more.


def test_a_wait_for_what_is_made_of_rows_is_not_blamed_on_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loader.stager._STALL_S", 0.02)
    told = threading.Event()
    monkeypatch.setattr("loader.stager.log.warning", lambda *words: told.set() if "makes items of rows" in words[-1] else None)
    with MemoryDataset(CONTENT, batch_size=100, transform=lambda batch: told.wait(WAIT_S)) as dataset:
        assert list(dataset) == [True]


def test_hand_off_says_when_nothing_has_come_for_a_while() -> None:
    queue: HandOff[int] = HandOff(limit=1)
    with pytest.raises(StillWaiting):
        queue.get(patience_s=0.01)
    queue.put(1)
    assert queue.get(patience_s=0.01) == 1
    queue.fail(TimeoutError("of whoever makes it"))
    with pytest.raises(TimeoutError, match="of whoever makes it"):
        queue.get(patience_s=0.01)
