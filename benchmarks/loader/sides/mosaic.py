"""MosaicML Streaming: MDS shards, `StreamingDataset` (py1e) with `StreamingDataLoader`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from benchmarks.loader.sets import Columns
from benchmarks.loader.sides.base import Place, rows_of

__all__ = ["Mosaic"]

_ENCODINGS = {"tokens": "ndarray:uint16:2048", "blob": "bytes", "label": "int", "features": "ndarray:float32:10"}


class _Stream:
    def __init__(self, place: Place, *, batch_size: int | None) -> None:
        # What another process left in shared memory under the same names would be taken for this one's.
        clean_stale_shared_memory()
        remote = str(place.data) if place.cold else None
        local = str(place.cache if place.cold else place.data)
        planned = batch_size or place.chosen.batch_size  # What the order is planned for, also where samples come singly.
        self._dataset = StreamingDataset(remote=remote, local=local, shuffle=True, batch_size=planned)
        self._batch_size = batch_size
        self._loader = None if batch_size is None else StreamingDataLoader(self._dataset, batch_size=batch_size, num_workers=0)

    def epoch(self) -> Iterator[Any]:
        return iter(self._dataset if self._loader is None else self._loader)

    def state(self, batches: int) -> object:
        return self._dataset.state_dict(num_samples=batches * (self._batch_size or 1), from_beginning=True)

    def resume(self, state: object) -> None:
        self._dataset.load_state_dict(state)

    def close(self) -> None:
        self._loader = self._dataset = None


class Mosaic:
    """See `base.Side`."""

    packages = ("mosaicml-streaming",)
    fills_cache = False

    def write(self, columns: Columns, place: Place) -> None:
        shutil.rmtree(place.data, ignore_errors=True)
        encodings = {name: _ENCODINGS[name] for name in columns}
        compression = "zstd:3" if place.compressed else None
        with MDSWriter(out=str(place.data), columns=encodings, compression=compression, progress_bar=False) as writer:
            for row in rows_of(columns, place.chosen.rows):
                writer.write(row)

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        return _Stream(place, batch_size=batch_size)
