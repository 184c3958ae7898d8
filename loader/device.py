"""Batches on a device, copied there ahead of the training loop.

Theory of operation
-------------------
`DevicePrefetcher` takes items from a dataset, or from a DataLoader over one, and has up to `depth` of them under way to the
device. The tensors of an item are laid side by side into one pinned buffer and copied from there on a stream of their own, so
that copies go on beside the training step. Before an item is handed out, the training loop's stream is told to wait for its
copies, and the allocator that this stream uses the tensors.

A pinned buffer is used again once the event behind its copies is done, and no sooner; there are at most ``depth + 1``. What
comes pinned already is copied from where it is, and kept alive until then. The dataset's own buffers are free as soon as
their rows are in a pinned one: see `loader.buffers`.

Items that are under way were yielded by the dataset, and not yet consumed. So the prefetcher's `state_dict` counts what it has
handed out; the dataset's would be ahead by up to `depth` batches.

`Streams` is all that is asked of a device, so that tests can play a slow one. On the CPU items pass as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from loader.epoch import Position
from loader.errors import InvalidOption, StateUnavailable
from loader.stream import StreamDataset

__all__ = ["CudaStreams", "DevicePrefetcher", "Event", "Streams"]

_ALIGNMENT = 64  # Of tensors within a pinned buffer.
_END = object()


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Whether all before it is done."""

    def synchronize(self) -> None:
        """Wait until it is."""


class Streams(Protocol):
    """A device that copies beside what it computes."""

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Host memory that it can copy from by itself, as bytes."""

    def takes(self, source: torch.Tensor) -> bool:
        """Whether it can copy from this tensor as it is."""

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        """A tensor on the device that will have the values of `source`, which it takes, once the copying stream is there."""

    def mark(self) -> Event:
        """A point behind all copies so far."""

    def hand_over(self, event: Event, tensors: Sequence[torch.Tensor]) -> None:
        """Have the stream of the caller wait for `event`, and the allocator know that it uses these."""


class CudaStreams:
    """Copies on a CUDA (or ROCm) device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def takes(self, source: torch.Tensor) -> bool:
        return source.is_cuda or source.is_pinned()

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            return source.to(self._device, non_blocking=True)

    def mark(self) -> Event:
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def hand_over(self, event: Event, tensors: Sequence[torch.Tensor]) -> None:
        current = torch.cuda.current_stream(self._device)
        assert isinstance(event, torch.cuda.Event)
        current.wait_event(event)
        for tensor in tensors:
            # Made on the copying stream: without this its memory could be given to a later copy while a kernel still reads it.
            tensor.record_stream(current)


class _Moving(NamedTuple):
    """An item under way, and the tensors of it that are new."""

    item: Any
    tensors: Sequence[torch.Tensor]
    event: Event | None


class _PinnedBuffers:
    """At most `limit` pinned buffers, used in turn, each again once its copies are done."""

    def __init__(self, streams: Streams, *, limit: int) -> None:
        self._streams = streams
        self._limit = limit
        self._busy: deque[tuple[torch.Tensor, Event, Sequence[torch.Tensor]]] = deque()

    def take(self, size_bytes: int) -> torch.Tensor:
        """A buffer of at least this size."""
        if self._busy and (len(self._busy) == self._limit or self._busy[0][1].query()):
            buffer, event, _ = self._busy.popleft()
            event.synchronize()
            if len(buffer) >= size_bytes:
                return buffer
        return self._streams.pinned(size_bytes)

    def give_back(self, buffer: torch.Tensor, *, after: Event, sources: Sequence[torch.Tensor]) -> None:
        """Use the buffer again after this event, until which `sources` are kept as well."""
        self._busy.append((buffer, after, sources))


class DevicePrefetcher:
    """Iterates over a dataset with its tensors on a device.

    Parameters
    ----------
    source : iterable
        A `ShardedDataset` or `MixedDataset`, or a DataLoader over one.
    device : str or torch.device
        Where tensors go. ``cpu`` leaves them where they are.
    depth : int
        Items under way at once, 1 or more. Each takes its size on the device, and in pinned memory.
    streams : Streams, optional
        How to copy; by default as the device does.

    Raises
    ------
    InvalidOption
        For a depth below 1.
    """

    def __init__(
        self, source: Iterable[Any], device: str | torch.device, *, depth: int = 2, streams: Streams | None = None
    ) -> None:
        if depth < 1:
            raise InvalidOption(f"depth={depth}: expected 1 or more")
        self._source = source
        self._device = torch.device(device)
        self._depth = depth
        if streams is None and self._device.type == "cuda":
            streams = CudaStreams(self._device)
        self._streams = streams
        self._buffers = None if streams is None else _PinnedBuffers(streams, limit=depth + 1)
        self._ahead: deque[_Moving] = deque()
        self._num_handed: int | None = None  # None: not in the middle of an epoch.
        self._taken_to: Position | None = None  # Where the dataset was when the last item was taken from it.

    def __len__(self) -> int:
        """As the source says."""
        return len(self._source)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Items of the source, in its order. After a break, a dataset goes on with the item after the last one handed out."""
        if self._ahead and self._taken_to is not None and self._taken_to == self._position():
            # Those under way were yielded, but nobody has had them. If the dataset was moved since, nobody wants them.
            self.load_state_dict(self.state_dict())
        self._ahead.clear()
        self._num_handed = 0
        return self._items(iter(self._source))

    def state_dict(self) -> dict[str, Any]:
        """The state of the dataset after what was handed out: what `ShardedDataset.load_state_dict` takes.

        Raises
        ------
        StateUnavailable
            If items are not batches of the dataset, or single samples by ``batch_size=None``: then their number says nothing.
        """
        dataset = self._dataset()
        return dataset.state_dict() if self._num_handed is None else dataset.state_at(batches=self._num_handed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the dataset go on where `state` was taken; see `ShardedDataset.load_state_dict`."""
        self._ahead.clear()
        self._num_handed = None
        self._dataset().load_state_dict(state)

    def _dataset(self) -> StreamDataset:
        dataset = getattr(self._source, "dataset", self._source)
        joined = getattr(self._source, "batch_size", None) is not None
        if not isinstance(dataset, StreamDataset) or joined or not dataset.yields_batches:
            raise StateUnavailable(
                "the prefetcher counts the batches of a dataset: give it one without yield_samples, or a DataLoader over such "
                "a one with batch_size=None"
            )
        return dataset

    def _position(self) -> Position | None:
        """Where the dataset is, if it moves with what is taken from it; with DataLoader workers it doesn't."""
        dataset = getattr(self._source, "dataset", self._source)
        if not isinstance(dataset, StreamDataset) or getattr(self._source, "num_workers", None):
            return None
        return dataset.position

    def _items(self, source: Iterator[Any]) -> Iterator[Any]:
        ahead = self._ahead
        while True:
            while len(ahead) < self._depth and (item := next(source, _END)) is not _END:
                ahead.append(self._move(item))
                self._taken_to = self._position()
            if not ahead:
                self._num_handed = None
                return
            moving = ahead.popleft()
            if moving.event is not None and self._streams is not None:
                self._streams.hand_over(moving.event, moving.tensors)
            assert self._num_handed is not None
            self._num_handed += 1
            yield moving.item

    def _move(self, item: Any) -> _Moving:
        if self._streams is None or self._buffers is None:
            return _Moving(_mapped(item, lambda tensor: tensor.to(self._device)), (), None)
        sources: list[torch.Tensor] = []
        _mapped(item, sources.append)
        taken = [self._streams.takes(source) for source in sources]
        rooms = [0 if as_is else _room_bytes(source) for source, as_is in zip(sources, taken, strict=True)]
        buffer, offset = self._buffers.take(sum(rooms)), 0
        tensors: list[torch.Tensor] = []
        for source, room in zip(sources, rooms, strict=True):
            if room:
                layout = torch.empty_like(source, device="meta")  # Channels stay last where they are.
                part = buffer[offset : offset + source.nbytes].view(source.dtype).as_strided(layout.shape, layout.stride())
                tensors.append(self._streams.copy(part.copy_(source)))
                offset += room
            else:
                tensors.append(self._streams.copy(source))
        event = self._streams.mark()
        self._buffers.give_back(buffer, after=event, sources=sources if any(taken) else ())
        moved = iter(tensors)
        return _Moving(_mapped(item, lambda _: next(moved)), tensors, event)


def _room_bytes(tensor: torch.Tensor) -> int:
    return max(1, -(-tensor.nbytes // _ALIGNMENT)) * _ALIGNMENT


def _mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with each tensor in it changed, in dicts, lists and tuples of any depth; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)({name: _mapped(part, change) for name, part in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(part, change) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    return value
