"""Random numbers of rows: the same for a row of an epoch wherever it comes, others anywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loader.errors import InvalidOption
from loader.transforms import EpochRandom, ItemTransform, RowGenerators

RANDOM = EpochRandom(seed=7, epoch=2)


def raw(random: EpochRandom, row: int) -> list[int]:
    return [int(draw) for draw in np.asarray(random.of_row(row).bit_generator.random_raw(3))]


@pytest.mark.parametrize(("seed", "epoch", "row"), [(8, 2, 5), (7, 3, 5), (7, 2, 6)])
def test_draws_differ_by_seed_epoch_and_row(seed: int, epoch: int, row: int) -> None:
    assert not set(raw(EpochRandom(seed=seed, epoch=epoch), row)) & set(raw(RANDOM, 5))


def test_generators_are_those_of_the_rows() -> None:
    generators = RowGenerators(RANDOM, np.array([9, 4, 9]))
    assert len(generators) == 3
    draws = [generator.random() for generator in generators]
    assert draws == [RANDOM.of_row(row).random() for row in (9, 4, 9)]
    assert [generator.random() for generator in generators[1:]] == draws[1:]


def plain(item: Any) -> Any:
    return item


def with_rng(item: Any, rng: np.random.Generator) -> Any:
    return item, rng.random()


class WithBoth:
    def __call__(self, item: Any, *, rng: np.random.Generator, rngs: RowGenerators) -> Any:
        return item, rng.random(), [generator.random() for generator in rngs]


def test_transform_gets_the_generators_that_it_names() -> None:
    rows = np.array([4, 9])
    first, second = (RANDOM.of_row(row).random() for row in (4, 9))
    results = [ItemTransform.of(call, whole_batches=True)("item", RANDOM, rows) for call in (plain, with_rng, WithBoth(), str)]
    assert results == ["item", ("item", first), ("item", first, [first, second]), "item"]


def test_generators_of_many_rows_are_for_batches_only() -> None:
    with pytest.raises(InvalidOption, match="gets single samples: take rng"):
        ItemTransform.of(WithBoth(), whole_batches=False)
