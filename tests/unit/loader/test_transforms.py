"""Random numbers of rows: the same for a row of an epoch wherever it comes, others anywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loader.errors import InvalidOption
from loader.transforms import ItemTransform, RowGenerators, row_generator


def raw(*, seed: int = 7, epoch: int = 2, row: int = 5) -> list[int]:
    return [int(draw) for draw in np.asarray(row_generator(seed=seed, epoch=epoch, row=row).bit_generator.random_raw(3))]


@pytest.mark.parametrize("other", [{"seed": 8}, {"epoch": 3}, {"row": 6}])
def test_draws_differ_by_seed_epoch_and_row(other: dict[str, int]) -> None:
    assert raw() == raw()
    assert not set(raw()) & set(raw(**other))


def first(epoch: int, row: int) -> float:
    return float(row_generator(seed=7, epoch=epoch, row=row).random())


def test_generators_are_those_of_the_rows() -> None:
    generators = RowGenerators(seed=7, epochs=np.array([2, 2, 3]), rows=np.array([9, 4, 9]))
    assert len(generators) == 3
    assert [generator.random() for generator in generators] == [first(2, 9), first(2, 4), first(3, 9)]
    assert [generator.random() for generator in generators[1:]] == [first(2, 4), first(3, 9)]


def plain(item: Any) -> Any:
    return item


def with_rng(item: Any, rng: np.random.Generator) -> Any:
    return item, rng.random()


class WithBoth:
    def __call__(self, item: Any, *, rng: np.random.Generator, rngs: RowGenerators) -> Any:
        return item, rng.random(), [generator.random() for generator in rngs]


def test_transform_gets_the_generators_that_it_names() -> None:
    generators = RowGenerators(seed=7, epochs=np.array([2, 2]), rows=np.array([4, 9]))
    one, two = first(2, 4), first(2, 9)
    results = [ItemTransform.of(call, whole_batches=True)("item", generators) for call in (plain, with_rng, WithBoth(), str)]
    assert results == ["item", ("item", one), ("item", one, [one, two]), "item"]


def test_generators_of_many_rows_are_for_batches_only() -> None:
    with pytest.raises(InvalidOption, match="gets single samples: take rng"):
        ItemTransform.of(WithBoth(), whole_batches=False)
