"""What a build on Ray does without Ray: shares of the rows, lanes of the actors, and what it says where Ray is missing."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.build import build_dataset
from loader.errors import InvalidOption
from loader.order import lane_permutation
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from loader.writer import ShardWriter
from tests.unit.loader.test_build import URL, write_rows
from tests.unit.loader.watched_store import watched_store


@pytest.mark.parametrize(("num_lanes", "num_shares"), [(8, 1), (8, 2), (8, 8), (6, 3), (12, 4)])
def test_writers_of_every_cth_row_hand_over_the_lanes_of_one_writer(num_lanes: int, num_shares: int) -> None:
    rows = np.random.default_rng(1).integers(0, 1 << 60, 5001)
    options: dict[str, Any] = {"columns": {"n": "int64", "t": "str"}, "compression": "none", "block_size_bytes": 1500}
    texts = ["x" * int(number % 50) for number in rows]
    with watched_store() as (store, _, _):
        with ShardWriter(URL, num_lanes=num_lanes, client=store, **options) as one:
            one.write_batch({"n": rows, "t": texts})
        assert one.index is not None
        whole, part = lane_permutation(num_lanes).tolist(), lane_permutation(num_lanes // num_shares).tolist()
        lanes = {}
        for share in range(num_shares):
            writer = ShardWriter(URL, num_lanes=num_lanes // num_shares, client=store, **options)
            for start in range(share, len(rows), 700 * num_shares):
                chosen = slice(start, min(len(rows), start + 700 * num_shares), num_shares)
                writer.write_batch({"n": rows[chosen], "t": texts[chosen]})
            for lane, progress in enumerate(writer.hand_over()):
                lanes[whole[share + num_shares * part.index(lane)]] = progress
        with ShardWriter("forebay://data/together", num_lanes=num_lanes, client=store, **options) as together:
            together.go_on([lanes[lane] for lane in range(num_lanes)], first_row=len(rows))
        assert together.index is not None
        assert together.index.digest == one.index.digest
        assert verify_dataset(DatasetReader(store, "data", "together")).clean


@pytest.mark.parametrize("first_row", [0, 900, 1777])
def test_writers_of_shares_go_on_with_what_one_writer_has_left(monkeypatch: pytest.MonkeyPatch, first_row: int) -> None:
    monkeypatch.setattr("loader.writer.DEAL_BYTES", 5000)
    monkeypatch.setattr("loader.staging.MIN_CHUNK_BYTES", 1000)
    monkeypatch.setattr("loader.staging.LANE_CHUNKS_BYTES", 4000)
    rows = np.random.default_rng(1).integers(0, 1 << 60, 15_001)
    options: dict[str, Any] = {"columns": {"n": "int64"}, "compression": "none", "block_size_bytes": 1024}
    with watched_store() as (store, _, _):
        with ShardWriter(URL, num_lanes=8, client=store, **options) as one:
            for start in range(0, 12_000, 500):
                one.write_batch({"n": rows[start : start + 500]})
            assert one._staging is not None
            left = one._staging.flush()  # Else it would depend on how far its threads have come.
            one.write_batch({"n": rows[12_000:]})
        assert one.index is not None
        whole, part = lane_permutation(8).tolist(), lane_permutation(4).tolist()
        assert min(lane.num_rows for lane in left) * 8 > 1777
        lanes = {}
        for share in range(2):
            own = {lane: whole[share + 2 * place] for place, lane in enumerate(part)}
            writer = ShardWriter(URL, num_lanes=4, client=store, **options)
            writer.go_on([left[own[lane]] for lane in range(4)], first_row=len(range(share, first_row, 2)))
            writer.write_batch({"n": rows[first_row + (share - first_row) % 2 :: 2]})
            lanes.update({own[lane]: progress for lane, progress in enumerate(writer.hand_over())})
        with ShardWriter("forebay://data/together", num_lanes=8, client=store, **options) as together:
            together.go_on([lanes[lane] for lane in range(8)], first_row=len(rows))
        assert together.index is not None
        assert together.index.digest == one.index.digest


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.jsonl", 5)
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with watched_store() as (store, catalog, _):
        with pytest.raises(InvalidOption, match=r"needs ray; install it with: pip install 'forebay\[loader,ray\]'"):
            build_dataset([tmp_path / "rows.jsonl"], URL, client=store, on_ray=True)
        assert not catalog.history
