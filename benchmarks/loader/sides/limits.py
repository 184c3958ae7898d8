"""What no loader on this machine can exceed: the gather of the same rows, or the decompression of the same frames, alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

from benchmarks.loader.sets import Columns, load
from benchmarks.loader.sides.base import Place
from benchmarks.loader.sides.forebay import BUCKET, url_of
from client import Client
from loader.reader import DatasetReader

__all__ = ["Gather", "Zstd"]


class _Limit:
    packages: tuple[str, ...] = ()
    fills_cache = False

    def state(self, batches: int) -> object:
        return None

    def resume(self, state: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def write(self, columns: Columns, place: Place) -> None:
        pass


class Gather(_Limit):
    """`np.take` of shuffled rows, batch by batch, out of arrays in memory."""

    def open(self, place: Place, *, batch_size: int | None) -> Gather:
        assert batch_size is not None
        columns = load(place.chosen, place.data)
        self._columns = {name: np.array(column) for name, column in columns.items()}
        self._order = np.random.default_rng(0).permutation(place.chosen.rows)
        self._batch_size = batch_size
        return self

    def epoch(self) -> Iterator[Any]:
        size = self._batch_size
        outs = {name: np.empty((size, *column.shape[1:]), column.dtype) for name, column in self._columns.items()}
        for start in range(0, len(self._order) - size + 1, size):
            for name, column in self._columns.items():
                np.take(column, self._order[start : start + size], axis=0, out=outs[name], mode="clip")
            yield outs


class Zstd(_Limit):
    """The frames of Forebay's dataset, from memory, decompressed one after another on one thread, and nothing else done."""

    def open(self, place: Place, *, batch_size: int | None) -> Zstd:
        with Client() as client:
            reader = DatasetReader(client, BUCKET, url_of(place).rpartition("/")[2])
            self._blocks: list[tuple[bytes, int, int]] = []
            for number, lane in enumerate(reader.index.lanes):
                table = reader.table(number)
                for block, rows in enumerate(table.rows.tolist()):
                    start = lane.offset + int(table.offsets[block, 0])
                    stored = client.get(BUCKET, reader.info.key, start=start, end=start + int(table.stored_size[block, 0]))
                    self._blocks.append((stored, rows, int(table.raw_size[block, 0])))
        return self

    def epoch(self) -> Iterator[Any]:
        out = memoryview(bytearray(max(size for _, _, size in self._blocks)))
        for stored, rows, size in self._blocks:
            zstandard.ZstdDecompressor().stream_reader(stored).readinto(out[:size])
            yield {"rows": range(rows)}
