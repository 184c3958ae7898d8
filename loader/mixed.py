"""`MixedDataset`: several datasets by weights, as one stream that is as exact in order and in resuming as one alone.

`loader.mixture` says which sample comes when. This module opens the datasets, sees that they have the same columns, and gives
and takes states that name all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from loader.assignment import Tail
from loader.collate import Collate
from loader.dataset import DEFAULT_CACHE_LIMIT_BYTES, ShardedDataset
from loader.epoch import Position
from loader.errors import ColumnError, DatasetNotFound, InvalidOption, StateMismatch
from loader.images import Decode
from loader.lanes import sharing_warning
from loader.mixture import MIXTURE_ALGORITHM, Component, Mixture, whole_weights
from loader.opened import OpenDataset, OpenStream
from loader.state import ComponentState, LoaderState
from loader.stream import DEFAULT_PREFETCH_BYTES, StreamDataset
from loader.transforms import Transform

__all__ = ["MixedDataset"]


class MixedDataset(StreamDataset):
    """Streams several datasets, mixed by weights, to one data-parallel rank.

    Each run of 4,096 samples has exactly as many of each dataset as its weight says, at places that depend on nothing but the
    digests, the weights and `seed`. Each dataset comes in the order in which it would come alone with this seed, and begins its
    next epoch whenever its last one is over, so small ones are repeated.

    Parameters
    ----------
    datasets : sequence of str or ShardedDataset
        URLs, or datasets that say more: endpoints, cache, columns. All else about order and batches is the mixture's.
    weights : sequence of float
        One above 0 for each, in any unit. They are rounded to parts of 4,096, and must leave something of each.
    epoch_samples : int, optional
        What an epoch of the mixture is: this many samples of all ranks together. By default as many as the datasets have rows.
        It is part of a state: going on with another one is refused.
    shuffle : bool
        Shuffle each dataset; False is the written order of each. They are mixed in the same way either way.
    columns : sequence of str, optional
        Columns to read, which all datasets must have with the same types; by default all, which must then be the same.
    with_index : bool
        Add ``_index``, the row's number in its dataset, and ``_component``, the number of the dataset.
    cache_dir, cache_limit_bytes, endpoints
        For the datasets that are given as URLs.
    batch_size, seed, rank, world_size, tail, yield_samples, prefetch_bytes, decode, collate, transform, zero_copy, num_threads
        As `ShardedDataset` takes them. Memory: the lanes being read are those of all datasets.

    Raises
    ------
    InvalidOption
        For an argument out of range. Nothing is contacted before the dataset is used; then, if a dataset has no rows.
    ColumnError
        When it is used, if the columns differ; the message lists how.
    """

    def __init__(
        self,
        datasets: Sequence[str | ShardedDataset],
        *,
        weights: Sequence[float],
        epoch_samples: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        columns: Sequence[str] | None = None,
        rank: int | None = None,
        world_size: int | Any | None = None,
        tail: Tail = "pad",
        yield_samples: bool = False,
        prefetch_bytes: int = DEFAULT_PREFETCH_BYTES,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit_bytes: int = DEFAULT_CACHE_LIMIT_BYTES,
        decode: Decode = False,
        collate: Mapping[str, Collate] | None = None,
        transform: Transform | None = None,
        with_index: bool = False,
        zero_copy: bool = False,
        endpoints: str | list[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        if isinstance(datasets, str) or len(datasets) != len(weights):
            raise InvalidOption(f"datasets={datasets!r}, weights={weights!r}: give a list of datasets, and a weight for each")
        if epoch_samples is not None and epoch_samples < 1:
            raise InvalidOption(f"epoch_samples={epoch_samples}: expected 1 or more")
        super().__init__(
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            tail=tail,
            yield_samples=yield_samples,
            prefetch_bytes=prefetch_bytes,
            decode=decode,
            collate=collate,
            transform=transform,
            with_index=with_index,
            zero_copy=zero_copy,
            num_threads=num_threads,
            keep_lanes=cache_dir is not None,
        )
        self._weights = whole_weights(weights)
        self._epoch_samples = epoch_samples
        self._columns = None if columns is None else tuple(columns)
        cache: dict[str, Any] = {"cache_dir": cache_dir, "cache_limit_bytes": cache_limit_bytes, "endpoints": endpoints}
        self._parts = [
            ShardedDataset(part, columns=columns, rank=0, world_size=1, **cache) if isinstance(part, str) else part
            for part in datasets
        ]
        if any(part.has_locality for part in self._parts):
            raise InvalidOption("locality=True of a dataset in a mixture: a mixture deals its lanes to ranks in their order")
        self._opened: OpenStream | None = None

    @property
    def num_rows(self) -> int:
        """Samples of an epoch of the mixture, over all ranks."""
        return self._mixture.epoch_samples

    @property
    def digest(self) -> str:
        """The mixture's digest, which the order depends on: that of the datasets' digests and weights."""
        return self._mixture.digest

    def close(self) -> None:
        """Close connections, end threads and free buffers of this process, those of the datasets too."""
        super().close()
        for part in self._parts:
            part.close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opened": None}

    @property
    def _mixture(self) -> Mixture:
        mixture = self._open().mixture
        assert mixture is not None
        return mixture

    def _open(self) -> OpenStream:
        if self._opened is None or not self._opened.is_mine:
            self._opened = self._mixed([part._open().datasets[0] for part in self._parts])
        return self._opened

    def _adopt(self, opened: OpenStream) -> None:
        for part, version in zip(self._parts, opened.datasets, strict=True):
            if version.reader is not part.reader:
                part._adopt(OpenStream.of([version]))
        self._opened = opened

    def _mixed(self, datasets: Sequence[OpenDataset]) -> OpenStream:
        """Datasets that were opened, as one."""
        alike = _with_columns(datasets, self._columns)
        components = tuple(
            Component(
                digest=dataset.reader.index.digest,
                num_rows=dataset.reader.index.num_rows,
                num_lanes=dataset.reader.index.num_lanes,
                weight=weight,
            )
            for dataset, weight in zip(alike, self._weights, strict=True)
        )
        for dataset, component in zip(alike, components, strict=True):
            if component.num_rows == 0:
                raise InvalidOption(f"{dataset.reader.url} has no rows, so nothing can be mixed in of it: leave it out")
        samples = self._epoch_samples or sum(component.num_rows for component in components)
        mixture = Mixture(components=components, seed=self._seed, epoch_samples=samples)
        return OpenStream.of(alike, mixture=mixture, zero_copy=self._zero_copy)

    def _open_for(self, saved: LoaderState) -> OpenStream:
        saved.check_components(self._weights)
        versions = []
        for number, (part, component) in enumerate(zip(self._parts, saved.components, strict=True)):
            version = part._open().datasets[0]
            if version.reader.index.digest != component.digest:
                # An older version may still be there. If not, the comparison fails.
                with suppress(DatasetNotFound):
                    version = part._open_version(version.store, version=component.version)
            found = version.reader.index.digest
            if found != component.digest:
                raise StateMismatch(
                    f"the state was saved with dataset_digest={component.digest!r} of dataset {number}, {part.url} has "
                    f"{found!r}: the orders differ",
                    field="dataset_digest",
                    saved=component.digest,
                    current=found,
                )
            versions.append(version)
        opened = self._mixed(versions)
        assert opened.mixture is not None
        saved.check_against(
            dataset_digest=opened.mixture.digest,
            num_rows=opened.mixture.epoch_samples,
            seed=self._seed,
            shuffle=self._shuffle,
            order_algorithm=MIXTURE_ALGORITHM,
            epoch_samples=opened.mixture.epoch_samples,
        )
        return opened

    def _state(self, position: Position) -> LoaderState:
        opened = self._open()
        components = tuple(
            ComponentState(digest=dataset.reader.index.digest, version=dataset.reader.info.version, weight=weight)
            for dataset, weight in zip(opened.datasets, self._weights, strict=True)
        )
        return LoaderState(
            dataset_digest=self.digest,
            dataset_version=0,
            seed=self._seed,
            epoch=position.epoch,
            samples_consumed=position.start,
            shuffle=self._shuffle,
            order_algorithm=MIXTURE_ALGORITHM,
            lane_map=self._lane_map,
            components=components,
            epoch_samples=self.num_rows,
        )

    def _warnings(self) -> list[str]:
        shared = sharing_warning(len(self._open().lanes), world_size=self._world_size)
        return [] if shared is None else [shared]


def _with_columns(datasets: Sequence[OpenDataset], columns: Sequence[str] | None) -> list[OpenDataset]:
    """The datasets with the columns that are wanted, in the same order, or `ColumnError` if they are not the same."""
    types = [dict(dataset.reader.schema.items()) for dataset in datasets]
    wanted = [columns or dataset.names for dataset in datasets]
    names = [name for name in types[0] if name in wanted[0]]
    differences = []
    for name in dict.fromkeys(name for some in wanted for name in some):
        found = [own.get(name) if name in some else None for own, some in zip(types, wanted, strict=True)]
        if None in found or len(set(map(str, found))) > 1:
            told = (
                f"{dataset.reader.url} has {'none' if kind is None else kind}"
                for dataset, kind in zip(datasets, found, strict=True)
            )
            differences.append(f"{name!r}: {', '.join(told)}")
    if differences:
        raise ColumnError(
            f"the datasets of a mixture need the same columns. {'; '.join(differences)}. "
            "columns=[...] chooses those that are alike"
        )
    return [replace(dataset, columns=tuple(map(dataset.reader.schema.position, names))) for dataset in datasets]
