"""WebDataset: tar shards of 64 MB, shuffled by shards and a buffer of 1,000 samples, batched in the pipeline, `WebLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import webdataset

from benchmarks.loader.sets import Columns
from benchmarks.loader.sides.base import Place, rows_of

__all__ = ["WebDataset"]

_FIELDS = {"tokens": "tokens.npy", "blob": "blob.bin", "label": "label.cls", "features": "features.npy"}
_SHARD_BYTES = 64e6
_SHUFFLE = 1000


class _Stream:
    def __init__(self, place: Place, *, batch_size: int | None) -> None:
        shards = sorted(path.name for path in place.data.glob("*.tar"))
        where = place.url if place.cold else str(place.data)
        urls = [f"{where}/{shard}" for shard in shards]
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(_SHUFFLE).decode()
        names = [_FIELDS[name] for name in place.names]
        dataset = dataset.to_tuple(*names)
        self._loader = dataset
        if batch_size is not None:
            self._loader = webdataset.WebLoader(dataset.batched(batch_size), batch_size=None, num_workers=0)

    def epoch(self) -> Iterator[Any]:
        return iter(self._loader)

    def state(self, batches: int) -> object:
        return None

    def resume(self, state: object) -> None:
        raise NotImplementedError("WebDataset has no state")

    def close(self) -> None:
        pass


class WebDataset:
    """See `base.Side`."""

    packages = ("webdataset",)
    fills_cache = False

    def write(self, columns: Columns, place: Place) -> None:
        place.data.mkdir(parents=True, exist_ok=True)
        with webdataset.ShardWriter(f"{place.data}/%06d.tar", maxsize=_SHARD_BYTES, maxcount=1 << 30, verbose=0) as writer:
            for number, row in enumerate(rows_of(columns, place.chosen.rows)):
                fields = {_FIELDS[name]: value if name != "label" else int(value) for name, value in row.items()}
                writer.write({"__key__": f"{number:09d}", **fields})

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        return _Stream(place, batch_size=batch_size)
