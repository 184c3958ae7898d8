"""Libraries that open files through fsspec, on real nodes: pandas, pyarrow, torch, Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tqdm

from client.filesystem import ForebayFileSystem
from tests.support.cluster import LiveCluster

pytestmark = pytest.mark.slow


@pytest.fixture
def fs(cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForebayFileSystem]:
    monkeypatch.setenv("FOREBAY_ENDPOINT", ",".join(cluster.endpoints))
    ForebayFileSystem.clear_instance_cache()
    fs = fsspec.filesystem("forebay")
    yield fs
    fs.store.close()
    ForebayFileSystem.clear_instance_cache()


def table(num_rows: int = 5000) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "number": np.arange(num_rows),
            "value": rng.standard_normal(num_rows),
            "text": [f"row {row}" for row in range(num_rows)],
        }
    )


def test_pandas_writes_and_reads(fs: ForebayFileSystem) -> None:
    for kind in ("csv", "parquet"):
        url = f"forebay://data/table.{kind}"
        getattr(table(), f"to_{kind}")(url, index=False)
        pd.testing.assert_frame_equal(getattr(pd, f"read_{kind}")(url), table())


def test_pyarrow_reads_a_few_columns_of_a_folder(fs: ForebayFileSystem) -> None:
    whole = pa.Table.from_pandas(table())
    pq.write_to_dataset(
        whole.append_column("part", pa.array([row % 3 for row in range(whole.num_rows)])),
        "data/parts",
        filesystem=fs,
        partition_cols=["part"],
    )
    assert len(fs.find("data/parts")) == 3
    found = pq.read_table("data/parts", filesystem=fs, columns=["number"])
    assert sorted(found["number"].to_pylist()) == list(range(whole.num_rows))


def test_torch_saves_and_loads(fs: ForebayFileSystem) -> None:
    state: dict[str, Any] = {"weight": torch.randn(300, 1000), "step": 7}
    with fsspec.open("forebay://data/state.pt", "wb") as file:
        torch.save(state, file)
    with fsspec.open("forebay://data/state.pt") as file:
        found = torch.load(file, weights_only=True)
    assert torch.equal(found["weight"], state["weight"]) and found["step"] == 7


def test_hugging_face_datasets_saves_streams_and_loads(
    fs: ForebayFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # Its progress bars would leave a thread behind.
    rows = datasets.Dataset.from_pandas(table(1000))
    rows.save_to_disk("forebay://data/hf")
    assert datasets.load_from_disk("forebay://data/hf")["number"][:3] == [0, 1, 2]
    table().to_parquet("forebay://data/hf.parquet", index=False)
    streamed = datasets.load_dataset(
        "parquet", data_files="forebay://data/hf.parquet", split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert [row["text"] for row, _ in zip(streamed, range(3), strict=False)] == ["row 0", "row 1", "row 2"]
