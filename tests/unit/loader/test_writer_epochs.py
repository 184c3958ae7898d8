"""A writer that lives for longer than garbage collection spares chunks without a name keeps its chunks."""

from __future__ import annotations

import numpy as np
import pytest

from loader.reader import DatasetReader
from loader.verify import verify_dataset
from loader.writer import ShardWriter
from tests.unit.loader.collected_store import collected
from tests.unit.loader.watched_store import watched_store


@pytest.mark.parametrize("batch_rows", [100, 4000])
def test_epochs_pass_while_rows_are_written(monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr("loader.writer.DEAL_BYTES", 10_000)
    monkeypatch.setattr("loader.staging.MIN_CHUNK_BYTES", 2000)
    monkeypatch.setattr("loader.staging.LANE_CHUNKS_BYTES", 8000)
    rows = np.random.default_rng(1).integers(0, 1 << 60, 40_000)
    with watched_store() as (store, _, _):
        chunks = collected(store)
        with ShardWriter("forebay://data/set", {"n": "int64"}, "none", 2000, num_lanes=4, client=store) as writer:
            for start in range(0, len(rows), batch_rows):
                writer.write_batch({"n": rows[start : start + batch_rows]})
                if start % 4000 == 0:
                    chunks.next_epoch()
        reader = DatasetReader(store, "data", "set")
        assert verify_dataset(reader).clean
        assert [row["n"] for row in reader.rows(0, 40_000)] == rows.tolist()
    assert chunks.num_removed == 0


def test_epochs_pass_while_an_object_is_uploaded() -> None:
    payload = np.random.default_rng(2).bytes(40 * 64 * 1024)
    with watched_store(chunk_size_bytes=64 * 1024) as (store, _, _):
        chunks = collected(store)
        with store.upload("data", "key") as upload:
            for start in range(0, len(payload), 64 * 1024):
                upload.write(payload[start : start + 64 * 1024])
                if start % (10 * 64 * 1024) == 0:
                    chunks.next_epoch()
            upload.commit()
        assert chunks.epoch == 5
        assert store.get("data", "key") == payload
