"""LitData: `optimize` into chunks of 64 MB, `StreamingDataset` with `StreamingDataLoader`; tokens by its `TokensLoader`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import litdata
import torch
from litdata.streaming.item_loader import TokensLoader

from benchmarks.loader.sets import Columns
from benchmarks.loader.sides.base import Place, rows_of

__all__ = ["LitData"]

_BLOCK = 2048
_CHUNK_BYTES = 64 * 1024 * 1024


class _Stream:
    def __init__(self, place: Place, *, batch_size: int | None) -> None:
        self._dataset = litdata.StreamingDataset(
            f"local:{place.data}" if place.cold else str(place.data),
            cache_dir=str(place.cache) if place.cold else None,
            item_loader=TokensLoader(block_size=_BLOCK) if "tokens" in place.names else None,
            shuffle=True,
        )
        self._loader = None
        if batch_size is not None:
            self._loader = litdata.StreamingDataLoader(self._dataset, batch_size=batch_size, num_workers=0)

    def epoch(self) -> Iterator[Any]:
        # A generator, for the dataset is its own iterator and begins anew whenever it is asked for one.
        yield from self._dataset if self._loader is None else self._loader

    def state(self, batches: int) -> object:
        assert self._loader is not None
        for _ in itertools.islice(self._loader, max(1, batches)):
            pass
        return self._loader.state_dict()

    def resume(self, state: object) -> None:
        assert self._loader is not None
        self._loader.load_state_dict(state)

    def close(self) -> None:
        pass


class LitData:
    """See `base.Side`."""

    packages = ("litdata",)
    fills_cache = False

    def write(self, columns: Columns, place: Place) -> None:
        is_tokens = "tokens" in columns
        litdata.optimize(
            fn=partial(_rows, columns, place.chosen.rows),
            inputs=[0],
            output_dir=str(place.data),
            chunk_bytes=None if is_tokens else _CHUNK_BYTES,
            chunk_size=_CHUNK_BYTES // 2 if is_tokens else None,  # In tokens.
            compression="zstd" if place.compressed else None,
            compression_level="chunk" if place.compressed and is_tokens else None,  # All that tokens can have.
            num_workers=1,
            item_loader=TokensLoader() if is_tokens else None,
            mode="overwrite",
            start_method="fork",
            verbose=False,
        )

    def open(self, place: Place, *, batch_size: int | None) -> _Stream:
        return _Stream(place, batch_size=batch_size)


def _rows(columns: Columns, rows: int, _: int) -> Iterator[Any]:
    for row in rows_of(columns, rows):
        if "tokens" in row:
            yield torch.from_numpy(row["tokens"].copy())
        else:
            yield {name: value.copy() if hasattr(value, "copy") else value for name, value in row.items()}
