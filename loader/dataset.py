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

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from client import Client
from client.errors import ObjectNotFound
from client.names import parse_url
from client.record import ObjectInfo
from loader.assignment import TAILS, Assignment, Tail, run_of_rank
from loader.batch import batches_of, samples_of
from loader.cache import DiskCache
from loader.epoch import SharedEpoch
from loader.errors import InvalidOption, StateMismatch, StateUnavailable
from loader.order import ORDER_ALGORITHM
from loader.prefetch import Stager, StreamSpec
from loader.ranks import resolve_ranks, worker_of
from loader.reader import DatasetReader
from loader.receipt import Receipt
from loader.state import LoaderState

__all__ = ["ShardedDataset"]

Transform = Callable[[Any], Any]
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
        Columns to read; all by default. Others are not fetched.
    rank, world_size : int, optional
        Data-parallel; `world_size` may be a one-dimensional DeviceMesh or a process group. By default from
        torch.distributed, else ``RANK`` and ``WORLD_SIZE``, else 0 of 1.
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
        self._bucket, self._key = parse_url(url)
        if batch_size is None and yield_samples:
            raise InvalidOption("yield_samples=True needs a batch_size; without one, single samples come anyway")
        self._rank, self._world_size = resolve_ranks(rank, world_size)
        # Checks sizes and the tail now, rather than at the first batch.
        Assignment(
            num_rows=0, num_lanes=1, world_size=self._world_size, batch_size=1 if batch_size is None else batch_size, tail=tail
        )
        if tail not in TAILS or not 0 <= seed < 1 << 64 or prefetch_bytes < 0 or cache_limit_bytes < 0:
            raise InvalidOption(
                f"seed={seed} must be 0 to 2**64 - 1, prefetch_bytes={prefetch_bytes} and "
                f"cache_limit_bytes={cache_limit_bytes} not negative"
            )
        self._batch_size, self._tail, self._yield_samples = batch_size, tail, yield_samples
        self._shuffle, self._seed = shuffle, seed
        self._columns = None if columns is None else tuple(columns)
        self._prefetch_bytes = prefetch_bytes
        self._cache_dir, self._cache_limit_bytes = None if cache_dir is None else Path(cache_dir), cache_limit_bytes
        self._transform, self._with_index = transform, with_index
        self._endpoints = endpoints
        self._num_threads = num_threads or max(2, min(8, len(os.sched_getaffinity(0))))
        self._lane_map = "rotate" if cache_dir is None else "fixed"
        self._epoch = SharedEpoch()
        self._start_epoch, self._consumed = 0, 0  # Samples consumed of `_start_epoch`; of any later epoch, none.
        self._within = 0  # Samples yielded of the batch that begins there, where samples are yielded singly.
        self._info: ObjectInfo | None = None
        self._opened: tuple[int, Client, DatasetReader] | None = None
        self._receipt: Receipt | None = None

    # What it is

    @property
    def reader(self) -> DatasetReader:
        """The open dataset; opened at first use, once in each process."""
        if self._opened is None or self._opened[0] != os.getpid():
            client = Client(self._endpoints)
            reader = DatasetReader(client, self._bucket, self._key, info=self._info)
            if self._cache_dir is not None:
                reader.cache = DiskCache(self._cache_dir, digest=reader.index.digest, limit_bytes=self._cache_limit_bytes)
            # From now on this version is read, in every copy of this dataset, whatever the name points to later.
            self._info = reader.info
            self._opened = (os.getpid(), client, reader)
        return self._opened[2]

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
        return self._epoch.value

    def __len__(self) -> int:
        """Items of a whole epoch on this rank: batches, or samples where those are yielded singly."""
        assignment, run = self._assignment(start=0), self._run(self.epoch)
        num_batches = assignment.num_batches(run=run)
        if self._batch_size is None or not self._yield_samples:
            return num_batches
        if num_batches == 0:
            return 0
        return (num_batches - 1) * self._batch_size + len(assignment.share(num_batches - 1, run=run))

    def __getitem__(self, number: int) -> Any:
        """Row `number` of the written order, as an item of ``batch_size=None`` would be."""
        row = self.reader.row(number, names=self._names())
        sample = {name: torch.as_tensor(v) if hasattr(v, "dtype") else v for name, v in row.items()}
        if self._with_index:
            sample["_index"] = torch.tensor(number % self.num_rows)
        return sample if self._transform is None else self._transform(sample)

    # Where it is

    def set_epoch(self, epoch: int) -> None:
        """Read `epoch` next, from its start; the epoch that is under way goes on where it is.

        Reaches the workers of a DataLoader, persistent ones too, at their next iteration.
        """
        if epoch < 0:
            raise InvalidOption(f"epoch={epoch}: epochs are counted from 0")
        if epoch != self.epoch:
            self._epoch.value, self._within = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as a dict under a kilobyte, the same on every rank.

        Raises
        ------
        StateUnavailable
            While DataLoader workers read this epoch, or in the middle of a batch whose samples are yielded singly.
        """
        if self._epoch.read_by_workers:
            raise StateUnavailable(
                "DataLoader workers read this epoch, and none of them knows what the training loop has consumed: use "
                "state_at(batches=k) after k batches, or state_from() with a StatefulDataLoader's state"
            )
        if self._within:
            raise StateUnavailable("in the middle of a batch no position is exact: ask after its last sample")
        return self._state(self._position())

    def state_at(self, *, batches: int) -> dict[str, Any]:
        """The state after this many batches of this epoch's current iteration, for a main process with DataLoader workers.

        With ``batch_size=None`` a batch is one sample of each rank.
        """
        assignment = self._assignment(start=self._position())
        if not 0 <= batches <= assignment.num_batches():
            raise InvalidOption(f"batches={batches}: this epoch has {assignment.num_batches()} left")
        return self._state(assignment.consumed(batches))

    def state_from(self, loader_state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of this dataset in the state of a torchdata StatefulDataLoader, exact for any number of workers."""
        yielded = loader_state.get("_num_yielded", loader_state.get("_snapshot", {}).get("_snapshot_step"))
        if "_steps_since_snapshot" in loader_state:
            yielded = loader_state["_snapshot"]["_snapshot_step"] + loader_state["_steps_since_snapshot"]
        if not isinstance(yielded, int):
            raise StateMismatch(
                f"expected the state_dict of a torchdata StatefulDataLoader, found the fields {sorted(loader_state)[:8]}"
            )
        return self.state_at(batches=yielded)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, at exactly the next sample. Load it before a DataLoader is made.

        Raises
        ------
        StateInvalid
            If it is no state.
        StateMismatch
            If it belongs to another dataset, seed or order; names both values. A state of an older version of this dataset
            reopens that version, where the bucket still keeps it.
        """
        saved = LoaderState.from_json(dict(state))
        if saved.dataset_digest != self.digest:
            self._reopen(saved)
        saved.check_against(dataset_digest=self.digest, num_rows=self.num_rows, seed=self._seed, shuffle=self._shuffle)
        self._lane_map = saved.lane_map
        self._epoch.value = self._start_epoch = saved.epoch
        self._consumed, self._within = saved.samples_consumed, 0
        self._epoch.note_reader(in_worker=False)

    def receipt(self) -> dict[str, Any]:
        """What the last, or current, epoch cost this process; see `loader.receipt.Receipt`. Empty before the first."""
        return {} if self._receipt is None else {"rank": self._rank, **self._receipt.to_dict()}

    def close(self) -> None:
        """Close connections and threads of this process. The dataset opens again when it is used."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __enter__(self) -> ShardedDataset:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Copies go to workers: they open their own connections, and count for themselves.
        return {**self.__dict__, "_opened": None, "_receipt": None}

    # Iteration

    def __iter__(self) -> Iterator[Any]:
        """Items of this rank (and worker) from where the stream is to the end of the epoch.

        At the end the epoch advances. After a break, the next iteration goes on with the sample after the last one yielded.
        """
        epoch, start = self.epoch, self._position()
        worker, num_workers = worker_of()
        self._epoch.note_reader(in_worker=get_worker_info() is not None)
        assignment = self._assignment(start=start)
        spec = StreamSpec(
            assignment=assignment,
            run=self._run(epoch),
            first=worker,
            step=num_workers,
            columns=self.reader.select(self._columns),
            seed=self._seed,
            epoch=epoch,
            shuffle=self._shuffle,
            prefetch_bytes=self._prefetch_bytes // num_workers,
            num_threads=self._num_threads,
        )
        self._receipt = Receipt(epoch=epoch)
        with contextlib.closing(self._items(spec, self._receipt)) as items:
            yield from items
        # All workers do this; none begins another epoch before each has come here.
        self._start_epoch, self._consumed, self._within = epoch + 1, 0, 0
        self._epoch.value = epoch + 1

    def _items(self, spec: StreamSpec, receipt: Receipt) -> Generator[Any, None, None]:
        names = [self.reader.schema.names[number] for number in spec.columns]
        transform = self._transform or (lambda item: item)
        failovers = self.reader.failovers
        with Stager(self.reader, spec, receipt) as stager:
            while True:
                with receipt.stalled():
                    stage = stager.next()
                receipt.add(failovers=self.reader.failovers - failovers)
                failovers = self.reader.failovers
                if stage is None:
                    return
                batches = batches_of(stage, names, with_index=self._with_index)
                for number, batch in zip(stage.batches, batches, strict=True):
                    receipt.add(samples=len(next(iter(batch.values()))))
                    yield from self._batch_items(batch, transform, spec.assignment.consumed(number + 1), spec.epoch)

    def _batch_items(self, batch: Any, transform: Transform, consumed: int, epoch: int) -> Iterator[Any]:
        """The items of one batch; the position moves on before the last of them, which the caller then holds."""
        if self._batch_size is not None and not self._yield_samples:
            self._start_epoch, self._consumed = epoch, consumed
            yield transform(batch)
            return
        samples = list(samples_of(batch))
        # After a break in the middle of a batch, its remaining samples come first.
        for place, sample in enumerate(samples[self._within :], start=self._within + 1):
            self._within = place % len(samples)
            if self._within == 0:
                self._start_epoch, self._consumed = epoch, consumed
            yield transform(sample)

    def _names(self) -> list[str]:
        return [self.reader.schema.names[number] for number in self.reader.select(self._columns)]

    def _position(self) -> int:
        """Samples consumed of the current epoch."""
        return self._consumed if self.epoch == self._start_epoch else 0

    def _run(self, epoch: int) -> int:
        return run_of_rank(self._rank, epoch=epoch, world_size=self._world_size, rotate=self._lane_map == "rotate")

    def _assignment(self, *, start: int) -> Assignment:
        return Assignment(
            num_rows=self.num_rows,
            num_lanes=self.reader.index.num_lanes,
            world_size=self._world_size,
            batch_size=self._batch_size or 1,
            start=start,
            tail=self._tail,
        )

    def _state(self, consumed: int) -> dict[str, Any]:
        return LoaderState(
            dataset_digest=self.digest,
            dataset_version=self.reader.info.version,
            seed=self._seed,
            epoch=self.epoch,
            samples_consumed=consumed,
            shuffle=self._shuffle,
            order_algorithm=ORDER_ALGORITHM,
            lane_map=self._lane_map,
        ).to_json()

    def _reopen(self, saved: LoaderState) -> None:
        """Open the version that a state was taken from; leaves the current one if it is gone."""
        client = Client(self._endpoints)
        try:
            info = client.stat(self._bucket, self._key, version=saved.dataset_version)
        except ObjectNotFound:
            return  # The comparison that follows names both digests.
        finally:
            client.close()
        self.close()
        self._info = info
