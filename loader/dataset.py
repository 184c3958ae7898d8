"""`ShardedDataset`: a Forebay dataset as a PyTorch `IterableDataset`, exact in order and in resuming; `loader.stream` says how.

This module knows where the dataset is, and opens it: once in each process, and everywhere the same version.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from client import Client
from client.names import parse_url
from client.objects import ObjectStore
from client.record import ObjectInfo
from loader.agreement import LaneAgreement
from loader.assignment import Tail
from loader.collate import Collate
from loader.epoch import Position
from loader.errors import DatasetNotFound, InvalidOption
from loader.images import Decode
from loader.lanes import sharing_warning
from loader.opened import CacheSpec, OpenDataset, OpenStream
from loader.order import ORDER_ALGORITHM
from loader.ranks import resolve_run_id, worker_of
from loader.reader import DatasetReader
from loader.state import LoaderState
from loader.stream import DEFAULT_PREFETCH_BYTES, StreamDataset
from loader.transforms import Transform

__all__ = ["ShardedDataset"]

log = logging.getLogger(__name__)

DEFAULT_CACHE_LIMIT_BYTES = 64 * 1024**3


class ShardedDataset(StreamDataset):
    """Streams a dataset to one data-parallel rank.

    Parameters
    ----------
    url : str
        ``forebay://bucket/key``.
    batch_size : int, optional
        Rows of a batch of this rank; then each item is a dict of stacked tensors. None: each item is one sample's dict.
    shuffle : bool
        Shuffle each epoch anew; False is written order.
    seed : int
        Of the order; the same on all ranks.
    columns : sequence of str, optional
        Columns to read; all by default. Others are not fetched, unless they are short and lie between these.
    rank, world_size : int, optional
        Data-parallel; `world_size` may be a one-dimensional DeviceMesh or a process group. By default from
        torch.distributed, else from torchrun, Slurm or Kubernetes (`loader.ranks`), else 0 of 1.
    tail : str
        What becomes of a last batch that is short: ``pad`` (ranks without a row repeat one, marked ``_pad``), ``drop``, or
        ``uneven``.
    yield_samples : bool
        With a `batch_size`: yield the rows of each batch singly.
    prefetch_bytes : int
        Decoded bytes fetched ahead. Peak memory is twice the blocks of the lanes being read, plus this, plus
        `num_threads` + 2 items that `decode`, `collate` or `transform` make.
    cache_dir : path, optional
        Keeps decoded blocks there for later epochs, up to `cache_limit_bytes`. Ranks then keep their lanes between epochs.
    decode : bool or mapping of str to str
        Decode images, in threads ahead of use; without it they are bytes. True: all columns of type jpeg and png, to RGB
        tensors of their own size. ``{"photo": "uint8[3,224,224]"}``: this column, cut and scaled; see `loader.images`.
    collate : mapping of str to callable, optional
        What becomes of columns of a batch: ``{"tokens": loader.collate.pad()}``.
    transform : callable, optional
        Applied to each item, in threads ahead of use. If it has a parameter ``rng``, it gets a numpy Generator that is the same
        whenever the row comes in this epoch; see `loader.transforms`.
    with_index : bool
        Add ``_index``, the row's number in the dataset.
    zero_copy : bool
        Values of columns of bytes, and of images that are not decoded, are read-only memoryviews instead of byte strings: of
        the cache's files, mapped, or of the block that was just fetched. A view keeps its block in memory for as long as it is
        held. Blocks that are not in the cache are fetched in each epoch. Not for the workers of a DataLoader, and not for a
        `cache_dir` on a disk that may fail: that ends the process.
    locality : bool
        Give each rank the lanes whose copies lie on its host, as far as possible, where the number of lanes divides that of
        rows in a global batch. Global batches stay the same; which rank has which of their rows does not. All ranks have to
        ask for it, and may write below the dataset's key: see `loader.agreement`. Ranks then keep their lanes between epochs.
    run_id : str, optional
        For `locality`: the same on all ranks, and another one each time that the job starts. By default from torchrun or Slurm.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile, as for `client.Client`.
    num_threads : int, optional
        Threads that fetch, and as many for `decode`, `collate` and `transform`; by default the CPUs of this process, 4 to 8.

    Raises
    ------
    InvalidOption
        For an argument out of range. Nothing is contacted before the dataset is used.
    """

    def __init__(
        self,
        url: str,
        *,
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
        locality: bool = False,
        run_id: str | None = None,
        endpoints: str | list[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.url = url
        bucket, key = parse_url(url)
        if cache_limit_bytes < 0:
            raise InvalidOption(f"cache_limit_bytes={cache_limit_bytes} must not be negative")
        if isinstance(columns, str):
            raise InvalidOption(f"columns={columns!r}: give a list of names")
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
            keep_lanes=cache_dir is not None or locality,
        )
        cache = None if cache_dir is None else CacheSpec(root=Path(cache_dir), limit_bytes=cache_limit_bytes)
        names = None if columns is None else tuple(columns)
        self._open_version = partial(OpenDataset.of, bucket=bucket, key=key, columns=names, cache=cache)
        self._endpoints = endpoints
        self._agreement: LaneAgreement | None = None
        if locality and self._world_size > 1:
            self._agreement = LaneAgreement(run_id=resolve_run_id(run_id), rank=self._rank, world_size=self._world_size)
        self._info: ObjectInfo | None = None
        self._opened: OpenStream | None = None
        self._inherited: OpenStream | None = None

    @property
    def reader(self) -> DatasetReader:
        """The open dataset; opened at first use, once in each process."""
        return self._open().datasets[0].reader

    @property
    def has_locality(self) -> bool:
        """Whether its lanes go to ranks on whose hosts they lie."""
        return self._agreement is not None

    @property
    def digest(self) -> str:
        """The dataset's digest, which the order depends on."""
        return self.reader.index.digest

    @property
    def num_rows(self) -> int:
        """Rows of the dataset, over all ranks."""
        return self.reader.index.num_rows

    def __getitem__(self, number: int) -> Any:
        """Row `number` of the written order, as an item of ``batch_size=None`` would be."""
        opened, row_number = self._open(), number % max(1, self.num_rows)
        row = self.reader.row(number, names=opened.names)
        sample = {name: torch.as_tensor(value) if hasattr(value, "dtype") else value for name, value in row.items()}
        if self._zero_copy:
            sample.update((name, memoryview(value)) for name, value in row.items() if isinstance(value, bytes))
        if self._with_index:
            sample["_index"] = torch.tensor(row_number)
        maker = self._maker(opened, epoch=self.epoch)
        return maker.sample(sample, maker.row(row_number))

    def close(self) -> None:
        """Close connections, end threads and free buffers of this process. The dataset opens again when it is used."""
        super().close()
        if self._opened is not None and self._opened.is_mine:
            self._opened.datasets[0].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies open their own connections.
        return {**super().__getstate__(), "_opened": None, "_inherited": None}

    def _open(self) -> OpenStream:
        if self._opened is None or not self._opened.is_mine:
            # A parent process's is kept as it is: closing its sockets and ending its threads is not this process's business.
            self._inherited, store = self._opened, self._connect()
            try:
                opened = self._open_version(store, version=self._epoch.version or None, info=self._info)
                self._adopt(OpenStream.of([opened], zero_copy=self._zero_copy))
            except BaseException:
                store.close()
                raise
        assert self._opened is not None
        return self._opened

    def _adopt(self, opened: OpenStream) -> None:
        # From now on this version is read, in every copy of this dataset, whatever the name points to later.
        self._opened, self._info = opened, opened.datasets[0].reader.info
        self._epoch.version = self._info.version

    def _connect(self) -> ObjectStore:
        return Client(self._endpoints)

    def _open_for(self, saved: LoaderState) -> OpenStream:
        opened = self._open()
        if saved.dataset_digest != self.digest:
            # An older version may still be there. If not, the comparison fails.
            with suppress(DatasetNotFound):
                version = self._open_version(opened.datasets[0].store, version=saved.dataset_version)
                opened = OpenStream.of([version], zero_copy=self._zero_copy)
        index = opened.datasets[0].reader.index
        saved.check_against(dataset_digest=index.digest, num_rows=index.num_rows, seed=self._seed, shuffle=self._shuffle)
        return opened

    def _resume_lanes(self, saved: LoaderState) -> None:
        if self._agreement is None:
            super()._resume_lanes(saved)
        else:
            self._agreement.resume(saved)

    def _lane_orders(self, opened: OpenStream) -> Callable[..., tuple[int, ...]]:
        for warning in self._warnings():
            log.warning("%s: %s", self.url, warning)
        if self._agreement is None or not self._is_divisible():
            return super()._lane_orders(opened)
        return partial(self._agreement.order, opened.datasets[0].store, opened.datasets[0].reader)

    def _warnings(self) -> list[str]:
        num_lanes, size = self.reader.index.num_lanes, self._world_size * self._batch_size
        shared = sharing_warning(num_lanes, world_size=self._world_size)
        warnings = [] if shared is None else [shared]
        if self._agreement is not None and not self._is_divisible():
            warnings.append(
                f"ranks take its lanes in order, because {num_lanes} lanes do not divide a global batch of {size} rows"
            )
        return warnings

    def _is_divisible(self) -> bool:
        """Whether each whole batch has equally many rows of each lane, so that each rank's lanes stay the same."""
        return self._world_size * self._batch_size % self.reader.index.num_lanes == 0

    def _lane_map_at(self, position: Position) -> str:
        if self._agreement is None or not self._is_divisible():
            return self._lane_map
        if position.start == 0 and worker_of() is None:
            return "placed"  # Perhaps no rank has begun this epoch, and a state is no reason to wait for all of them.
        opened = self._open().datasets[0]
        return self._agreement.name(opened.store, opened.reader, epoch=position.epoch)

    def _state(self, position: Position) -> LoaderState:
        reader = self.reader
        return LoaderState(
            dataset_digest=reader.index.digest,
            dataset_version=reader.info.version,
            seed=self._seed,
            epoch=position.epoch,
            samples_consumed=position.start,
            shuffle=self._shuffle,
            order_algorithm=ORDER_ALGORITHM,
            lane_map=self._lane_map_at(position),
        )
