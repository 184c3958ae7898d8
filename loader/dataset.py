"""`ShardedDataset`: a Forebay dataset as a PyTorch `IterableDataset`, exact in order and in resuming.

Theory of operation
-------------------
The order of an epoch is a pure function of (dataset digest, seed, epoch); `loader.order` and `loader.assignment` compute the
rows of any batch of any rank by arithmetic. So a position is one number, `state_dict` is small and the same on every rank,
and resuming with another world size, batch size or number of workers goes on at exactly the next sample.

The recommended use is a `DataLoader` with ``batch_size=None, num_workers=0``, or no DataLoader at all: threads fetch, decode
and gather. With worker processes, worker w of n makes every n-th batch; the main process then asks `state_at`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from client import Client
from client.names import parse_url
from client.objects import ObjectStore
from client.record import ObjectInfo
from loader.assignment import Assignment, Tail, run_of_rank
from loader.epoch import Position, SharedEpoch
from loader.errors import DatasetNotFound, InvalidOption, StateUnavailable
from loader.iteration import ItemSpec, Iteration, Transform
from loader.opened import CacheSpec, OpenDataset
from loader.order import ORDER_ALGORITHM
from loader.prefetch import StreamSpec
from loader.ranks import resolve_ranks, worker_of
from loader.reader import DatasetReader
from loader.receipt import Meters, Receipt
from loader.state import LoaderState
from loader.worker_state import state_of_loader
from loader.writer import usable_cores

__all__ = ["ShardedDataset"]

DEFAULT_PREFETCH_BYTES = 256 * 1024 * 1024
DEFAULT_CACHE_LIMIT_BYTES = 64 * 1024**3


class ShardedDataset(IterableDataset[Any]):
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
        Decoded bytes fetched ahead. Peak memory is twice the blocks of the lanes being read, plus this.
    cache_dir : path, optional
        Keeps decoded blocks there for later epochs, up to `cache_limit_bytes`. Ranks then keep their lanes between epochs.
    transform : callable, optional
        Applied to each item.
    with_index : bool
        Add ``_index``, the row's number in the dataset.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile, as for `client.Client`.
    num_threads : int, optional
        Threads that fetch and decode; by default the CPUs of this process, 2 to 8.

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
        transform: Transform | None = None,
        with_index: bool = False,
        endpoints: str | list[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        super().__init__()
        self.url = url
        bucket, key = parse_url(url)
        if batch_size is None and yield_samples:
            raise InvalidOption("yield_samples=True needs a batch_size; without one, single samples come anyway")
        num_threads = max(2, min(8, usable_cores())) if num_threads is None else num_threads
        if not 0 <= seed < 1 << 64 or prefetch_bytes < 0 or cache_limit_bytes < 0 or num_threads < 1:
            raise InvalidOption(
                f"seed={seed} must be 0 to 2**64 - 1, prefetch_bytes={prefetch_bytes} and "
                f"cache_limit_bytes={cache_limit_bytes} not negative, num_threads={num_threads} 1 or more"
            )
        if isinstance(columns, str):
            raise InvalidOption(f"columns={columns!r}: give a list of names")
        self._rank, self._world_size = resolve_ranks(rank, world_size)
        self._batch_size: int = 1 if batch_size is None else batch_size
        self._whole_batches = batch_size is not None and not yield_samples
        # Checks sizes and the tail now, rather than at the first batch.
        Assignment(num_rows=0, num_lanes=1, world_size=self._world_size, batch_size=self._batch_size, tail=tail)
        self._tail, self._shuffle, self._seed = tail, shuffle, seed
        self._prefetch_bytes = prefetch_bytes
        cache = None if cache_dir is None else CacheSpec(root=Path(cache_dir), limit_bytes=cache_limit_bytes)
        names = None if columns is None else tuple(columns)
        self._open_version = partial(OpenDataset.of, bucket=bucket, key=key, columns=names, cache=cache)
        self._transform, self._with_index = transform, with_index
        self._endpoints, self._num_threads = endpoints, num_threads
        self._lane_map = "rotate" if cache_dir is None else "fixed"
        self._epoch = SharedEpoch()
        self._begin: Position | None = None  # Of this process's last iteration.
        self._iteration: Iteration | None = None
        self._info: ObjectInfo | None = None
        self._opened: OpenDataset | None = None
        self._inherited: OpenDataset | None = None
        self._receipt: Receipt | None = None

    @property
    def reader(self) -> DatasetReader:
        """The open dataset; opened at first use, once in each process."""
        return self._open().reader

    @property
    def digest(self) -> str:
        """The dataset's digest, which the order depends on."""
        return self.reader.index.digest

    @property
    def num_rows(self) -> int:
        """Rows of the dataset, over all ranks."""
        return self.reader.index.num_rows

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration reads, or goes on with."""
        return self._epoch.next.epoch

    def __len__(self) -> int:
        """Items of a whole epoch on this rank: batches, or samples where those are yielded singly."""
        assignment, run = self._assignment(start=0), self._run(self.epoch)
        num_batches = assignment.num_batches(run=run)
        if self._whole_batches or num_batches == 0:
            return num_batches
        return (num_batches - 1) * self._batch_size + len(assignment.share(num_batches - 1, run=run))

    def __getitem__(self, number: int) -> Any:
        """Row `number` of the written order, as an item of ``batch_size=None`` would be."""
        row = self.reader.row(number, names=self._open().names)
        sample = {name: torch.as_tensor(value) if hasattr(value, "dtype") else value for name, value in row.items()}
        if self._with_index:
            sample["_index"] = torch.tensor(number % self.num_rows)
        return sample if self._transform is None else self._transform(sample)

    def set_epoch(self, epoch: int) -> None:
        """Read `epoch` next, from its start; if it is under way already, go on with it.

        Reaches the workers of a DataLoader, persistent ones too, at their next iteration. An iteration that is under way is
        not disturbed.
        """
        if not 0 <= epoch < 1 << 62:
            raise InvalidOption(f"epoch={epoch}: epochs are counted from 0")
        # Once workers have finished an epoch, only this says that the training loop has, too.
        if epoch != self.epoch or self._epoch.finished_by_workers:
            self._move(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as a dict under a kilobyte, the same on every rank.

        Raises
        ------
        StateUnavailable
            After DataLoader workers have read, until `set_epoch` or `load_state_dict` says where the stream is; and in the
            middle of a batch whose samples are yielded singly.
        """
        if worker_of() is not None:
            return self._worker_state()
        if self._epoch.read_by_workers:
            raise StateUnavailable(
                "DataLoader workers read this epoch, and none of them knows what the training loop has consumed: use "
                "state_at(batches=k) after k batches, state_from() with a StatefulDataLoader's state, or set_epoch() first "
                "when an epoch is over"
            )
        position = self._epoch.next
        if position.within:
            raise StateUnavailable(f"{position.within} samples into a batch no position is exact: ask after its last sample")
        return self._state(position).to_json()

    def state_at(self, *, batches: int) -> dict[str, Any]:
        """The state after this many batches of the iteration that is under way or was the last, counted by the caller.

        For the main process of DataLoader workers. With ``batch_size=None`` a batch is one sample of each rank.

        Raises
        ------
        InvalidOption
            If the iteration has fewer batches.
        """
        begin = self._epoch.current if self._epoch.read_by_workers else self._begin or self._epoch.next
        assignment = self._assignment(start=begin.start)
        if not 0 <= batches <= assignment.num_batches():
            raise InvalidOption(f"batches={batches}: this iteration has {assignment.num_batches()}")
        return self._state(begin._replace(start=assignment.consumed(batches))).to_json()

    def state_from(self, loader_state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of this dataset in the state of a torchdata StatefulDataLoader, for any number of workers.

        Load it into the dataset with `load_state_dict` before the next loader is made.

        Raises
        ------
        StateInvalid
            If it is no such state.
        StateUnavailable
            If it doesn't say exactly what was consumed: see `loader.worker_state`.
        """
        return state_of_loader(loader_state).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, at exactly the next sample. Load it before a DataLoader is made.

        Raises
        ------
        StateInvalid
            If it is no state.
        StateMismatch
            If it belongs to another dataset, seed or order; names both values. A state of an older version of this dataset
            reopens that version, where the bucket still keeps it.
        StateUnavailable
            In a DataLoader worker: a StatefulDataLoader with workers has to get its state back through `state_from`.
        """
        if worker_of() is not None:
            raise StateUnavailable(
                "a StatefulDataLoader with workers can't take its state up itself: call "
                "dataset.load_state_dict(dataset.state_from(loader_state)) and make a new loader instead"
            )
        saved = LoaderState.from_json(dict(state))
        opened = self._open_for(saved)
        index = opened.reader.index
        saved.check_against(dataset_digest=index.digest, num_rows=index.num_rows, seed=self._seed, shuffle=self._shuffle)
        self._stop_iteration("a state was loaded into the dataset; iterate anew")
        self._adopt(opened)
        self._lane_map = saved.lane_map
        self._move(saved.epoch, start=saved.samples_consumed)

    def receipt(self) -> dict[str, Any]:
        """What the last, or current, iteration cost this process; see `loader.receipt`. Empty before the first."""
        return {} if self._receipt is None else {"rank": self._rank, **self._receipt.to_dict()}

    def close(self) -> None:
        """Close connections, end threads and free buffers of this process. The dataset opens again when it is used."""
        self._stop_iteration("the dataset was closed")
        if self._opened is not None and self._opened.is_mine:
            self._opened.store.close()
        self._opened = None

    def __enter__(self) -> ShardedDataset:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Copies go to workers: they open their own connections, and count for themselves.
        return {**self.__dict__, "_opened": None, "_inherited": None, "_receipt": None, "_iteration": None}

    def __iter__(self) -> Iterator[Any]:
        """Items of this rank (and worker) from where the stream is to the end of the epoch.

        At the end the epoch advances. After a break the next iteration goes on with the item after the last one yielded; it
        takes over from an iterator that is still there. Only with DataLoader workers it begins again where this one began,
        unless all of them had come to the end already: what they have made is not what was consumed, see `state_at`.
        """
        self._stop_iteration("another iterator of this dataset was made, and goes on from here")
        self._iteration = iteration = Iteration(self._epoch, worker=worker_of())
        self._begin = iteration.begin
        return self._items(iteration)

    def _items(self, iteration: Iteration) -> Generator[Any, None, None]:
        iteration.check()
        opened = self._open()
        reader, epoch = opened.reader, iteration.begin.epoch
        first, step = (0, 1) if iteration.worker is None else (iteration.worker.number, iteration.worker.num_workers)
        spec = StreamSpec(
            assignment=self._assignment(start=iteration.begin.start),
            run=self._run(epoch),
            first=first,
            step=step,
            columns=opened.columns,
            with_index=self._with_index,
            seed=self._seed,
            epoch=epoch,
            shuffle=self._shuffle,
            prefetch_bytes=self._prefetch_bytes // step,
            num_threads=self._num_threads,
        )
        item = ItemSpec(names=opened.names, whole_batches=self._whole_batches, transform=self._transform)
        per_sample, meters = reader.num_blocks / max(1, reader.index.num_rows), Meters(failovers=lambda: reader.failovers)
        self._receipt = receipt = Receipt(epoch=epoch, blocks_per_sample=per_sample, meters=meters)
        try:
            yield from iteration.items(reader, spec, item, arena=opened.arena, receipt=receipt)
        finally:
            receipt.end()

    def _open(self) -> OpenDataset:
        if self._opened is None or not self._opened.is_mine:
            # A parent process's is kept as it is: closing its sockets and ending its threads is not this process's business.
            self._inherited, store = self._opened, self._connect()
            try:
                self._adopt(self._open_version(store, version=self._epoch.version or None, info=self._info))
            except BaseException:
                store.close()
                raise
        assert self._opened is not None
        return self._opened

    def _adopt(self, opened: OpenDataset) -> None:
        # From now on this version is read, in every copy of this dataset, whatever the name points to later.
        self._opened, self._info = opened, opened.reader.info
        self._epoch.version = self._info.version

    def _connect(self) -> ObjectStore:
        return Client(self._endpoints)

    def _open_for(self, saved: LoaderState) -> OpenDataset:
        """The version that a state was taken from, if it is still there; else the present one, and a comparison fails."""
        opened = self._open()
        if saved.dataset_digest == opened.reader.index.digest:
            return opened
        try:
            return self._open_version(opened.store, version=saved.dataset_version)
        except DatasetNotFound:
            return opened

    def _move(self, epoch: int, *, start: int = 0) -> None:
        self._epoch.move(epoch, start=start)
        self._begin = None

    def _worker_state(self) -> dict[str, Any]:
        iteration = self._iteration
        if iteration is None or iteration.worker is None:
            raise StateUnavailable("this DataLoader worker has not begun to iterate")
        begin, size = self._state(iteration.begin), self._world_size * self._batch_size
        return iteration.worker_state(begin, num_rows=self.num_rows, global_batch_size=size).to_json()

    def _stop_iteration(self, reason: str) -> None:
        # One that a parent process had was left behind by the fork, threads and all.
        if self._iteration is not None and self._iteration.pid == os.getpid():
            self._iteration.stop(reason)
        self._iteration = None

    def _run(self, epoch: int) -> int:
        return run_of_rank(self._rank, epoch=epoch, world_size=self._world_size, rotate=self._lane_map == "rotate")

    def _assignment(self, *, start: int) -> Assignment:
        return Assignment(
            num_rows=self.num_rows,
            num_lanes=self.reader.index.num_lanes,
            world_size=self._world_size,
            batch_size=self._batch_size,
            start=start,
            tail=self._tail,
        )

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
            lane_map=self._lane_map,
        )
