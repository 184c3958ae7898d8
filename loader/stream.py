"""What every dataset does that is streamed to a data-parallel rank, whatever it reads: epochs, position, state, iteration.

Theory of operation
-------------------
The order of an epoch is a pure function of (digest, seed, epoch); `loader.order` and `loader.assignment` compute the rows of
any batch of any rank by arithmetic. So a position is one number, `state_dict` is small and the same on every rank, and
resuming with another world size, batch size or number of workers goes on at exactly the next sample.

The recommended use is a `DataLoader` with ``batch_size=None, num_workers=0``, or no DataLoader at all: threads fetch, decode
and gather. With worker processes, worker w of n makes every n-th batch; the main process then asks `state_at`.

This module does not know what is opened, nor how: that is `loader.dataset`'s.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

from torch.utils.data import IterableDataset

from client.parallel import usable_cores
from loader.assignment import Assignment, Split, Tail
from loader.collate import Collate
from loader.epoch import Position, SharedEpoch
from loader.errors import ColumnError, InvalidOption, StateUnavailable
from loader.images import Decode, Pixels, image_columns
from loader.items import ItemMaker, Part
from loader.iteration import Iteration
from loader.opened import OpenStream, read_totals
from loader.ranks import resolve_ranks, worker_of
from loader.receipt import Meters, Receipt
from loader.stage import Epochs, StreamSpec
from loader.stager import Stager
from loader.state import LoaderState
from loader.transforms import ItemTransform, Transform
from loader.worker_state import state_of_loader

__all__ = ["DEFAULT_PREFETCH_BYTES", "StreamDataset"]

DEFAULT_PREFETCH_BYTES = 256 * 1024 * 1024


class StreamDataset(IterableDataset[Any]):
    """The part of a dataset that is the same for one that is read alone and for several that are mixed.

    Parameters
    ----------
    options
        As `loader.dataset.ShardedDataset` describes them.
    keep_lanes : bool
        Whether ranks keep their lanes between epochs.
    """

    def __init__(
        self,
        *,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        rank: int | None,
        world_size: int | Any | None,
        tail: Tail,
        yield_samples: bool,
        prefetch_bytes: int,
        decode: Decode,
        collate: Mapping[str, Collate] | None,
        transform: Transform | None,
        with_index: bool,
        zero_copy: bool,
        num_threads: int | None,
        keep_lanes: bool,
    ) -> None:
        super().__init__()
        if batch_size is None and yield_samples:
            raise InvalidOption("yield_samples=True needs a batch_size; without one, single samples come anyway")
        # While some decode, others wait for nodes: with four on two CPUs the first batch takes four fifths of the time.
        num_threads = max(4, min(8, usable_cores())) if num_threads is None else num_threads
        if not 0 <= seed < 1 << 64 or prefetch_bytes < 0 or num_threads < 1:
            raise InvalidOption(
                f"seed={seed} must be 0 to 2**64 - 1, prefetch_bytes={prefetch_bytes} not negative, "
                f"num_threads={num_threads} 1 or more"
            )
        self._rank, self._world_size = resolve_ranks(rank, world_size)
        self._batch_size: int = 1 if batch_size is None else batch_size
        self._whole_batches = batch_size is not None and not yield_samples
        # Checks sizes and the tail now, rather than at the first batch.
        Assignment(num_rows=0, num_lanes=1, world_size=self._world_size, batch_size=self._batch_size, tail=tail)
        self._tail, self._shuffle, self._seed = tail, shuffle, seed
        self._prefetch_bytes, self._num_threads = prefetch_bytes, num_threads
        if collate and not self._whole_batches:
            raise InvalidOption("collate makes columns of whole batches, but single samples are yielded: leave it out")
        for text in decode.values() if isinstance(decode, Mapping) else ():
            Pixels.parse(text)
        self._decode = decode
        self._collate, self._with_index, self._zero_copy = dict(collate or {}), with_index, zero_copy
        self._transform = None if transform is None else ItemTransform.of(transform, whole_batches=self._whole_batches)
        self._lane_map = "fixed" if keep_lanes else "rotate"
        self._epoch = SharedEpoch()
        self._begin: Position | None = None  # Of this process's last iteration.
        self._iteration: Iteration | None = None
        self._ahead: Stager[Part] | None = None  # Has come to the end of an epoch, and fetches for the next.
        self._receipt: Receipt | None = None

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Samples of an epoch, over all ranks."""

    @abstractmethod
    def _open(self) -> OpenStream:
        """What is read; opened at first use, once in each process."""

    @abstractmethod
    def _open_for(self, saved: LoaderState) -> OpenStream:
        """What a state was taken from; raises `StateMismatch` if it is not there, or of another stream than this."""

    @abstractmethod
    def _adopt(self, opened: OpenStream) -> None:
        """Read this from now on, in every copy of this dataset."""

    @abstractmethod
    def _state(self, position: Position) -> LoaderState:
        """The state at a position."""

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration reads, or goes on with."""
        return self._epoch.next.epoch

    @property
    def position(self) -> Position:
        """Where the next iteration begins, or the present one goes on."""
        return self._epoch.next

    @property
    def yields_batches(self) -> bool:
        """Whether each item is what this rank has of one global batch."""
        return self._whole_batches or self._batch_size == 1

    def __len__(self) -> int:
        """Items of a whole epoch on this rank: batches, or samples where those are yielded singly."""
        split = self._split()
        assignment, run = split.assignment(self.epoch), split.run(self.epoch)
        num_batches = assignment.num_batches(run=run)
        if self._whole_batches or num_batches == 0:
            return num_batches
        return (num_batches - 1) * self._batch_size + len(assignment.share(num_batches - 1, run=run))

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
        assignment = self._split().assignment(begin.epoch, start=begin.start)
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
        self._stop_iteration("a state was loaded into the dataset; iterate anew")
        self._end_ahead()
        self._adopt(opened)
        self._resume_lanes(saved)
        self._move(saved.epoch, start=saved.samples_consumed)

    def receipt(self) -> dict[str, Any]:
        """What the last, or current, iteration cost this process; see `loader.receipt`. Empty before the first."""
        if self._receipt is None:
            return {}
        return {"rank": self._rank, **self._receipt.to_dict(), "warnings": self._warnings()}

    def close(self) -> None:
        """Close connections, end threads and free buffers of this process. The dataset opens again when it is used."""
        self._stop_iteration("the dataset was closed")
        self._end_ahead()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Copies go to workers, which count for themselves.
        return {**self.__dict__, "_receipt": None, "_iteration": None, "_ahead": None}

    def __iter__(self) -> Iterator[Any]:
        """Items of this rank (and worker) from where the stream is to the end of the epoch.

        At the end the epoch advances. After a break the next iteration goes on with the item after the last one yielded; it
        takes over from an iterator that is still there. Only with DataLoader workers it begins again where this one began,
        unless all of them had come to the end already: what they have made is not what was consumed, see `state_at`.
        """
        self._stop_iteration("another iterator of this dataset was made, and goes on from here")
        worker = worker_of()
        if self._zero_copy and worker is not None:
            raise InvalidOption(
                "zero_copy=True: views of this process's memory can't go from a DataLoader worker to the training loop; use "
                "num_workers=0, where threads do the work, or leave it out"
            )
        self._iteration = iteration = Iteration(self._epoch, worker=worker)
        self._begin = iteration.begin
        return self._items(iteration)

    def _items(self, iteration: Iteration) -> Generator[Any, None, None]:
        iteration.check()
        opened = self._open()
        maker = self._maker(opened, epoch=iteration.begin.epoch)
        spec = self._spec(iteration, with_index=self._with_index or maker.in_threads)
        before = None if self._ahead is None else self._receipt
        stager = self._stager_of(opened, spec, maker)
        self._receipt = receipt = stager.receipt()
        receipt.begin(after=before)
        assignment = spec.split.assignment(spec.epoch, start=spec.start)
        try:
            yield from iteration.items(stager, assignment, whole_batches=self._whole_batches, receipt=receipt)
        finally:
            receipt.end()
        if spec.follow:
            self._ahead = stager
        else:
            stager.close()

    def _spec(self, iteration: Iteration, *, with_index: bool) -> StreamSpec:
        worker, begin = iteration.worker, iteration.begin
        step = 1 if worker is None else worker.num_workers
        return StreamSpec(
            split=self._split(),
            epoch=begin.epoch,
            start=begin.start,
            first=0 if worker is None else worker.number,
            step=step,
            # A worker that reads its first epoch may well end after it.
            follow=worker is None or self._epoch.num_begun > 1,
            with_index=with_index,
            seed=self._seed,
            shuffle=self._shuffle,
            prefetch_bytes=self._prefetch_bytes // step,
            num_threads=self._num_threads,
        )

    def _stager_of(self, opened: OpenStream, spec: StreamSpec, maker: ItemMaker) -> Stager[Part]:
        """The stager that runs already, if it comes to exactly what is wanted; else a new one."""
        if self._ahead is not None and self._ahead.take_over(opened, spec):
            stager, self._ahead = self._ahead, None
            return stager
        self._end_ahead()
        # A receipt outlives its stream, and must not keep its memory.
        meters = Meters(store=partial(read_totals, opened.datasets))
        epochs = Epochs(
            lane_order_of=self._lane_orders(opened),
            maker_of=partial(replace, maker),
            receipt_of=partial(Receipt, blocks_per_sample=opened.blocks_per_sample, meters=meters),
        )
        return Stager(opened, spec, epochs).start()

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _maker(self, opened: OpenStream, *, epoch: int) -> ItemMaker:
        for name in self._collate:
            if name not in opened.names:
                expected = f"one of the columns that are read, {', '.join(opened.names)}"
                raise ColumnError.mismatch(name, expected=expected, found="a collate function for another")
        kinds = dict(zip(opened.names, opened.datasets[0].kinds, strict=True))
        return ItemMaker(
            datasets=tuple(dataset.reader.url for dataset in opened.datasets),
            names=opened.names,
            whole_batches=self._whole_batches,
            with_index=self._with_index,
            images=image_columns(self._decode, kinds),
            collate=self._collate,
            transform=self._transform,
            seed=self._seed,
            epoch=epoch,
        )

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

    def _resume_lanes(self, saved: LoaderState) -> None:
        """Divide batches among ranks as they were divided when a state was taken, as far as that is possible."""
        if saved.lane_map in ("rotate", "fixed"):
            self._lane_map = saved.lane_map

    def _warnings(self) -> list[str]:
        """Why reading costs more than it would have to."""
        return []

    def _lane_orders(self, opened: OpenStream) -> Callable[..., tuple[int, ...]]:
        """What tells of an epoch the order by which batches are cut into runs; it must not refer to this dataset."""
        return opened.lane_order

    def _split(self) -> Split:
        opened = self._open()
        return Split(
            rank=self._rank,
            rotate=self._lane_map == "rotate",
            num_rows=self.num_rows,
            num_lanes=len(opened.lanes),
            world_size=self._world_size,
            batch_size=self._batch_size,
            tail=self._tail,
            mixture=opened.mixture,
        )
