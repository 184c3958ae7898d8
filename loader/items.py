"""What a dataset yields, made of gathered rows: batches or samples, images decoded, columns collated, the transform applied.

If none of these is asked for, an item is a dict of views, made in the training loop's thread just before it is
yielded. Else a stage becomes jobs (`loader.jobs`), a batch each or some samples, and items are made by the loader's threads
ahead of use. Either way they come in order, and what has not been yielded is not consumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice, pairwise
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loader.batch import Batch, batches_of, samples_of
from loader.collate import Collate
from loader.images import ImageBatch, ImageColumn
from loader.jobs import Job
from loader.stage import Stage
from loader.torch_threads import use_one_torch_thread
from loader.transforms import ItemTransform, RowGenerators

__all__ = ["ItemMaker", "Part", "RowNames"]

Int64s = npt.NDArray[np.int64]

_SAMPLES_PER_JOB: Final = 16  # One by one, handing them from thread to thread would cost more than most transforms.
_IMAGES_PER_PIECE: Final = 8
_NAMED_ROWS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Items of some consecutive batches.

    Attributes
    ----------
    batches : sequence of int
        Numbers of the batches.
    ends : list of int
        How many rows there are up to and including each batch.
    items : iterable
        A batch each, or all their samples.
    """

    batches: Sequence[int]
    ends: list[int]
    items: Iterable[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowNames:
    """Which rows an item is made of.

    Attributes
    ----------
    datasets : sequence of str
        URLs.
    numbers, components, epochs : int64 [rows]
        Of each row its number, its dataset's place among these, and the epoch of this dataset in which it comes.
    """

    datasets: Sequence[str]
    numbers: Int64s
    components: Int64s
    epochs: Int64s

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: slice) -> RowNames:
        return RowNames(
            datasets=self.datasets,
            numbers=self.numbers[places],
            components=self.components[places],
            epochs=self.epochs[places],
        )

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """The URL and the number of each."""
        return zip(map(self.datasets.__getitem__, self.components.tolist()), self.numbers.tolist(), strict=True)

    def __str__(self) -> str:
        """The first few: ``rows 3, 5 of forebay://bucket/a, row 4 of forebay://bucket/b and 29 more``."""
        parts = []
        for dataset, group in groupby(self[:_NAMED_ROWS], key=itemgetter(0)):
            numbers = [str(number) for _, number in group]
            parts.append(f"{'rows' if len(numbers) > 1 else 'row'} {', '.join(numbers)} of {dataset}")
        return ", ".join(parts) + (f" and {len(self) - _NAMED_ROWS} more" if len(self) > _NAMED_ROWS else "")

    def generators(self, seed: int) -> RowGenerators:
        """The random numbers of each."""
        return RowGenerators(seed=seed, epochs=self.epochs, rows=self.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemMaker:
    """Makes the items of one iteration.

    Attributes
    ----------
    datasets : sequence of str
        URLs of what is read.
    names : sequence of str
        Names of the columns.
    whole_batches : bool
        A batch is an item, or else a single sample.
    with_index : bool
        Whether items have ``_index``.
    images : mapping of str to ImageColumn
        What decodes a column.
    collate : mapping of str to callable
        What becomes of a column of a batch.
    transform : ItemTransform or None
        Applied to each item last.
    seed, epoch : int
        Of the stream.
    """

    datasets: Sequence[str]
    names: Sequence[str]
    whole_batches: bool
    with_index: bool
    images: Mapping[str, ImageColumn]
    collate: Mapping[str, Collate]
    transform: ItemTransform | None
    seed: int
    epoch: int

    @property
    def in_threads(self) -> bool:
        """Whether there is something to do ahead of use; then stages need the numbers of their rows."""
        return bool(self.images or self.collate) or self.transform is not None

    def jobs_of(self, stage: Stage) -> Iterator[Job[Part]]:
        """What to do to make the items of a stage."""
        if not self.in_threads:
            items: Iterator[Any] = (
                batches_of(stage, self.names, with_index=self.with_index)
                if self.whole_batches
                else samples_of(stage, self.names, with_index=self.with_index)
            )
            yield Job(pieces=(), finish=partial(Part, batches=stage.batches, ends=stage.ends, items=items))
        elif self.whole_batches:
            yield from self._batch_jobs(stage)
        else:
            yield from self._sample_jobs(stage)

    def sample(self, sample: dict[str, Any], rows: RowNames) -> Any:
        """The item of a single sample."""
        ((dataset, row),) = rows
        for name, column in self.images.items():
            sample[name] = column.tensor(sample[name], dataset=dataset, row=row)
        if self.transform is None:
            return sample
        with _noted(f"row {row} of {dataset}, epoch {self.epoch}"):
            return self.transform(sample, rows.generators(self.seed))

    def row(self, number: int) -> RowNames:
        """Row `number` of the only dataset, in this epoch."""
        return self._rows(np.array([number]))

    def _rows(self, numbers: Int64s, components: Int64s | None = None, epochs: Int64s | None = None) -> RowNames:
        same = np.zeros(len(numbers), np.int64)
        return RowNames(
            datasets=self.datasets,
            numbers=numbers,
            components=same if components is None else components,
            epochs=same + self.epoch if epochs is None else epochs,
        )

    def _rows_of(self, stage: Stage) -> RowNames:
        assert stage.numbers is not None
        return self._rows(stage.numbers, stage.components, stage.epochs)

    def _batch_jobs(self, stage: Stage) -> Iterator[Job[Part]]:
        batches = batches_of(stage, self.names, with_index=self.with_index, as_ragged=self.collate)
        all_rows = self._rows_of(stage)
        for number, (start, end), batch in zip(stage.batches, pairwise((0, *stage.ends)), batches, strict=True):
            rows = all_rows[start:end]
            images = {name: column.batch(batch[name], list(rows)) for name, column in self.images.items()}
            pieces = [
                partial(decoding.decode, place, place + _IMAGES_PER_PIECE)
                for decoding in images.values()
                for place in range(0, len(rows), _IMAGES_PER_PIECE)
            ]
            # A batch without images has only to be finished, but not in the stager's thread.
            yield Job(pieces=pieces or [use_one_torch_thread], finish=partial(self._batch, batch, images, rows, number))

    def _batch(self, batch: Batch, images: Mapping[str, ImageBatch], rows: RowNames, number: int) -> Part:
        batch.update((name, decoding.tensors()) for name, decoding in images.items())
        with _noted(f"batch {number} of epoch {self.epoch}: {rows}"):
            for name, function in self.collate.items():
                with _noted(f"collate of column {name!r}"):
                    batch[name] = function(batch[name])
            item = batch if self.transform is None else self.transform(batch, rows.generators(self.seed))
        return Part(batches=(number,), ends=[len(rows)], items=(item,))

    def _sample_jobs(self, stage: Stage) -> Iterator[Job[Part]]:
        samples = samples_of(stage, self.names, with_index=self.with_index)
        all_rows, batches_per_job, start = self._rows_of(stage), max(1, _SAMPLES_PER_JOB // stage.ends[0]), 0
        for first in range(0, len(stage.batches), batches_per_job):
            batches = slice(first, first + batches_per_job)
            ends = [end - start for end in stage.ends[batches]]
            rows, items = all_rows[start : start + ends[-1]], list(islice(samples, ends[-1]))
            pieces = [
                partial(self._make_samples, items, rows, place, place + _SAMPLES_PER_JOB)
                for place in range(0, len(items), _SAMPLES_PER_JOB)
            ]
            yield Job(pieces=pieces, finish=partial(Part, batches=stage.batches[batches], ends=ends, items=items))
            start += ends[-1]

    def _make_samples(self, items: list[Any], rows: RowNames, start: int, end: int) -> None:
        """Replace samples `start` to `end` by what becomes of them."""
        use_one_torch_thread()
        for place in range(start, min(end, len(items))):
            items[place] = self.sample(items[place], rows[place : place + 1])


@contextmanager
def _noted(what: str) -> Iterator[None]:
    """Say in the traceback of an error, which stays what it is, what was being made."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {what}")
        raise
