"""The prefetcher on a device that is as slow as a test wants it to be, and what its state counts."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from loader.batch import Batch
from loader.device import DevicePrefetcher
from loader.errors import InvalidOption, StateUnavailable
from tests.support.memory_store import MemoryDataset, dataset_bytes

ROWS, BATCH = 1000, 32
Pair = namedtuple("Pair", "left right")


class SlowEvent:
    def __init__(self, device: SlowDevice, point: int) -> None:
        self._device = device
        self._point = point

    def query(self) -> bool:
        return self._device.done >= self._point

    def synchronize(self) -> None:
        self._device.waits += not self.query()
        self._device.run_to(self._point)


class SlowDevice:
    """Copies happen when somebody waits for them, and read their sources only then."""

    def __init__(self, *, taken: Sequence[torch.Tensor] = ()) -> None:
        self._taken = taken
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = 0
        self.waits = 0
        self.num_pinned = 0
        self.used: list[torch.Tensor] = []

    def pinned(self, size_bytes: int) -> torch.Tensor:
        self.num_pinned += 1
        return torch.full((size_bytes,), 255, dtype=torch.uint8)

    def takes(self, source: torch.Tensor) -> bool:
        return any(source is tensor for tensor in self._taken)

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        target = torch.zeros_like(source)
        self._copies.append((target, source))
        return target

    def mark(self) -> SlowEvent:
        return SlowEvent(self, len(self._copies))

    def hand_over(self, event: Any, tensors: Sequence[torch.Tensor]) -> None:
        event.synchronize()
        self.used.extend(tensors)

    def run_to(self, point: int) -> None:
        for target, source in self._copies[self.done : point]:
            target.copy_(source)
        self.done = max(self.done, point)


def content() -> bytes:
    rows = np.arange(ROWS)
    return dataset_bytes(
        {"row": "int64", "x": "float32[3]", "name": "str"},
        {"row": rows, "x": np.outer(rows, [1, 2, 3]).astype(np.float32), "name": [f"row {row}" for row in rows]},
    )


def dataset(**options: Any) -> MemoryDataset:
    given: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "seed": 3, "num_threads": 2, **options}
    return MemoryDataset(content(), **given)


def rows_of(batches: Iterator[Any]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    with dataset() as plain:
        return rows_of(iter(plain))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_arrive_whole_and_in_order_from_few_buffers(depth: int, expected: list[list[int]]) -> None:
    device = SlowDevice()
    with dataset() as source:
        batches = []
        for batch in DevicePrefetcher(source, "cpu", depth=depth, streams=device):
            assert type(batch) is Batch
            assert torch.equal(batch["x"][:, 2], batch["row"] * 3.0)
            assert batch["name"] == [f"row {row}" for row in batch["row"].tolist()]
            # The allocator knows of each tensor before its user has it.
            assert any(batch["row"] is tensor for tensor in device.used)
            batches.append(batch)
    assert rows_of(iter(batches)) == expected
    assert device.num_pinned <= depth + 1


def test_a_buffer_is_not_used_again_before_its_copies_are_done() -> None:
    # Nobody waits here but for a buffer.
    device = SlowDevice()
    source = [{"x": torch.full((100,), float(number))} for number in range(20)]
    prefetcher = DevicePrefetcher(source, "cpu", depth=3, streams=device)
    device.hand_over = lambda event, tensors: None  # type: ignore[method-assign]
    moved = [batch["x"] for batch in prefetcher]
    assert device.num_pinned == 4
    assert device.waits == len(source) - 4
    device.run_to(len(source))
    assert [float(tensor.mean()) for tensor in moved] == [float(number) for number in range(20)]
    assert all(bool((tensor == tensor[0]).all()) for tensor in moved)


def test_images_keep_their_channels_last() -> None:
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 4, 5, 3).permute(0, 3, 1, 2)
    (moved,) = DevicePrefetcher([image], "cpu", streams=SlowDevice())
    assert torch.equal(moved, image)
    assert moved.stride() == image.stride()


def test_what_the_device_takes_as_it_is_is_kept_until_it_was_copied() -> None:
    pinned = torch.arange(10.0)
    device = SlowDevice(taken=[pinned])
    prefetcher = DevicePrefetcher([(pinned, torch.ones(3))], "cpu", streams=device)
    ((same, copied),) = list(prefetcher)
    assert device._copies[0][1] is pinned
    assert same.tolist() == list(range(10))
    assert copied.tolist() == [1, 1, 1]
    assert prefetcher._buffers is not None
    assert any(pinned is source for _, _, sources in prefetcher._buffers._busy for source in sources)


def test_tensors_are_found_wherever_they_are_and_the_rest_stays() -> None:
    item = {"a": [torch.ones(2), (torch.zeros(0, 3), "text")], "b": Pair(torch.tensor(True), None), "c": 7}
    for streams in (None, SlowDevice()):
        (moved,) = list(DevicePrefetcher([item], "cpu", streams=streams))
        assert moved["a"][0].tolist() == [1, 1]
        assert isinstance(moved["a"][1], tuple)
        assert (tuple(moved["a"][1][0].shape), moved["a"][1][1]) == ((0, 3), "text")
        assert isinstance(moved["b"], Pair)
        assert (moved["b"].left.item(), moved["b"].right, moved["c"]) == (True, None, 7)


@pytest.mark.parametrize("streams", [None, SlowDevice()])
@pytest.mark.parametrize("num_workers", [0, None])
def test_the_state_counts_what_was_handed_out(
    streams: SlowDevice | None, num_workers: int | None, expected: list[list[int]]
) -> None:
    def made(source: MemoryDataset) -> DevicePrefetcher:
        loader = source if num_workers is None else DataLoader(source, batch_size=None, num_workers=num_workers)
        return DevicePrefetcher(loader, "cpu", depth=4, streams=streams)

    for stop in (1, 7, len(expected) - 2, len(expected)):
        with dataset() as source:
            prefetcher = made(source)
            begun = rows_of(batch for _, batch in zip(range(stop), prefetcher, strict=False))
            state = prefetcher.state_dict()
        with dataset() as source:
            prefetcher = made(source)
            prefetcher.load_state_dict(state)
            assert begun + rows_of(iter(prefetcher)) == expected
            assert prefetcher.state_dict()["epoch"] == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_state_counts_what_workers_made_and_was_handed_out(expected: list[list[int]]) -> None:
    with dataset() as source:
        prefetcher = DevicePrefetcher(DataLoader(source, batch_size=None, num_workers=2), "cpu", depth=3)
        begun = rows_of(batch for _, batch in zip(range(4), prefetcher, strict=False))
        state = prefetcher.state_dict()
    with dataset() as source:
        prefetcher = DevicePrefetcher(source, "cpu")
        prefetcher.load_state_dict(state)
        assert begun + rows_of(iter(prefetcher)) == expected


def test_after_a_break_it_goes_on_with_what_was_not_handed_out(expected: list[list[int]]) -> None:
    with dataset() as source:
        prefetcher = DevicePrefetcher(source, "cpu", depth=3)
        begun = rows_of(batch for _, batch in zip(range(5), prefetcher, strict=False))
        begun += rows_of(batch for _, batch in zip(range(5), prefetcher, strict=False))
        assert begun + rows_of(iter(prefetcher)) == expected
        # What was under way belongs to an epoch that nobody wants any more.
        next(iter(prefetcher))
        source.set_epoch(0)
        assert rows_of(iter(prefetcher)) == expected


def test_what_cannot_be_counted_has_no_state() -> None:
    with dataset(yield_samples=True) as source:
        for items in (source, DataLoader(source, batch_size=8), [1, 2]):
            with pytest.raises(StateUnavailable, match="counts the batches of a dataset"):
                DevicePrefetcher(items, "cpu").state_dict()
    with pytest.raises(InvalidOption, match="depth=0: expected 1 or more"):
        DevicePrefetcher([], "cpu", depth=0)


def test_its_length_is_that_of_the_source() -> None:
    with dataset() as source:
        assert len(DevicePrefetcher(source, "cpu")) == len(source)
