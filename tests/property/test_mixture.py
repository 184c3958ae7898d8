"""Mixtures against a naive reference: exact counts in every round, each component in its own order, any split and resume."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.assignment import TAILS, Assignment, Split, Tail
from loader.mixture import ROUND_POSITIONS, Component, Mixture, whole_weights
from loader.order import locate_position

# Rows and lanes of each component, and weights before they are made whole.
shapes = st.lists(
    st.tuples(st.one_of(st.integers(1, 5), st.integers(1, 300)), st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=4
)
epoch_sizes = st.one_of(st.integers(1, 300), st.integers(1, 10_000))


def mixture_of(shape: list[tuple[int, int, int]], *, epoch_samples: int, seed: int = 0) -> Mixture:
    weights = whole_weights([weight for _, _, weight in shape])
    components = tuple(
        Component(digest=f"{number:02x}" * 32, num_rows=rows, num_lanes=lanes, weight=weight)
        for number, ((rows, lanes, _), weight) in enumerate(zip(shape, weights, strict=True))
    )
    return Mixture(components=components, seed=seed, epoch_samples=epoch_samples)


def component_at(mixture: Mixture, position: int) -> int:
    """The component that gains one when the position is passed."""
    after, before = mixture.before(position + 1), mixture.before(position)
    gained = [one - other for one, other in zip(after, before, strict=True)]
    assert sorted(gained) == [0] * (len(gained) - 1) + [1]
    return gained.index(1)


def naive_rows(mixture: Mixture, first: int, end: int) -> list[tuple[int, int, int, int]]:
    """Component, its epoch, lane and step of the positions of the endless sequence, one by one."""
    rows = []
    for position in range(first, end):
        number = component_at(mixture, position)
        component = mixture.components[number]
        epoch, place = divmod(mixture.before(position)[number], component.num_rows)
        lane, step = locate_position(place, num_lanes=component.num_lanes)
        rows.append((number, epoch, int(lane), int(step)))
    return rows


def rows_of(assignment: Assignment, batch: int, *, run: int) -> tuple[list[tuple[int, int, int, int]], list[bool]]:
    """The rows of a share as `naive_rows` has them, and which are repetitions."""
    assert assignment.mixture is not None
    lanes, begins = assignment.mixture.mixture.lanes, assignment.mixture.begins
    share, rows = assignment.share(batch, run=run), []
    for lane, step in zip(share.lanes.tolist(), share.steps.tolist(), strict=True):
        passed, place = divmod(step, int(lanes.rows[lane]))
        number = int(lanes.components[lane])
        rows.append((number, begins[number] + passed, int(lanes.lanes[lane]), place))
    return rows, share.pad.tolist()


@given(shapes, st.integers(0, 1 << 40), st.integers(0, 9))
@example([(1, 1, 1), (1, 1, 1)], (1 << 50) - 1, 0)
def test_each_round_holds_exactly_what_the_weights_say(shape: list[tuple[int, int, int]], number: int, seed: int) -> None:
    mixture = mixture_of(shape, epoch_samples=100, seed=seed)
    start = number * ROUND_POSITIONS
    weights = [component.weight for component in mixture.components]
    assert mixture.before(start) == [number * weight for weight in weights]
    assert Counter(component_at(mixture, start + place) for place in range(0, ROUND_POSITIONS, 64)).total() == 64
    inside = [mixture.before(start + place) for place in range(0, ROUND_POSITIONS + 1, 512)]
    assert [sum(counts) for counts in inside] == list(range(start, start + ROUND_POSITIONS + 1, 512))
    assert mixture.before(start + ROUND_POSITIONS) == [(number + 1) * weight for weight in weights]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_whole_weights_are_the_nearest(weights: list[int]) -> None:
    whole = whole_weights(weights)
    assert sum(whole) == ROUND_POSITIONS
    exact = [Fraction(weight * ROUND_POSITIONS, sum(weights)) for weight in weights]
    assert all(abs(one - other) < 1 for one, other in zip(whole, exact, strict=True))
    assert whole_weights([weight / 7 for weight in weights]) is not None


@settings(max_examples=60)
@given(shapes, epoch_sizes, st.integers(0, 3), st.integers(1, 17), st.integers(1, 40), st.floats(0, 1), st.sampled_from(TAILS))
@example([(1, 4, 1), (2, 1, 1)], 50, 2, 7, 3, 0.0, "pad")
def test_global_batches_are_stretches_of_the_mixture(
    shape: list[tuple[int, int, int]],
    epoch_samples: int,
    epoch: int,
    world_size: int,
    batch_size: int,
    part: float,
    tail: Tail,
) -> None:
    mixture = mixture_of(shape, epoch_samples=epoch_samples)
    num_lanes = len(mixture.lanes)
    split = Split(
        rank=0,
        rotate=True,
        num_rows=epoch_samples,
        num_lanes=num_lanes,
        world_size=world_size,
        batch_size=batch_size,
        tail=tail,
        mixture=mixture,
    )
    start = int(part * epoch_samples)
    assignment = split.assignment(epoch, start=start, lane_order=mixture.lane_order)
    base, batches = epoch * epoch_samples, range(assignment.num_batches())
    for batch in [*batches[:2], *batches[2:][-1:]]:
        found, padded = [], []
        for run in range(world_size):
            if run == 0 or batch < assignment.num_batches(run=run):
                rows, pad = rows_of(assignment, batch, run=run)
                found += [row for row, repeated in zip(rows, pad, strict=True) if not repeated]
                padded += [row for row, repeated in zip(rows, pad, strict=True) if repeated]
        expected = naive_rows(mixture, base + assignment.consumed(batch), base + assignment.consumed(batch + 1))
        assert sorted(found) == sorted(expected)
        assert set(padded) <= set(found)
        # Cut along (lane / lanes of the component, component), so that ranks read few lanes of each.
        keys = [(Fraction(lane, mixture.components[number].num_lanes), number, turn) for number, turn, lane, _ in found]
        assert keys == sorted(keys)


@settings(max_examples=60)
@given(shapes, st.integers(1, 400), st.integers(0, 5))
def test_each_component_comes_in_the_order_in_which_it_comes_alone(
    shape: list[tuple[int, int, int]], epoch_samples: int, epoch: int
) -> None:
    mixture = mixture_of(shape, epoch_samples=epoch_samples)
    rows = naive_rows(mixture, epoch * epoch_samples, (epoch + 1) * epoch_samples)
    for number, component in enumerate(mixture.components):
        own = [row[1:] for row in rows if row[0] == number]
        first = mixture.before(epoch * epoch_samples)[number]
        alone = []
        for count in range(first, first + len(own)):
            turn, place = divmod(count, component.num_rows)
            lane, step = locate_position(place, num_lanes=component.num_lanes)
            alone.append((turn, int(lane), int(step)))
        assert own == alone
    assert mixture.epoch(epoch).begins == tuple(
        count // component.num_rows
        for count, component in zip(mixture.before(epoch * epoch_samples), mixture.components, strict=True)
    )
