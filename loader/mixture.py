"""Several datasets read as one stream: which component each position belongs to, and how far each component is by then.

Theory of operation
===================
The positions of a mixture are one endless sequence, an epoch is a stretch of `epoch_samples` of them. Weights are whole numbers
that add up to 4,096. Positions are cut into *rounds* of 4,096; each holds exactly as many of component c as its weight says, at
places that a permutation by Philox(round number) gives them. So how many positions of each component lie before any position
is arithmetic and one permutation, wherever it is. The k-th of a component's positions is position k mod N of the component's
own epoch k div N, whatever the mixture's epochs are: read in a mixture, a dataset shows its rows in the order in which it would
show them alone, and begins its next epoch when the last one is over.

The lanes of all components are numbered through, one component's after another's. A lane's steps go on from one epoch of its
component to the next, so a stretch of positions is a range of steps in each lane, as with one dataset, and everything else
(`loader.assignment`, `loader.plan`) knows no components. Batches are cut along lanes sorted by (lane / lanes of the component,
component): each rank then gets about the same part of every component, and so few lanes of each.

Invariants: integers only; pure; nothing of the size of an epoch is built. One dataset alone is the case of one component.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import blake3
import numpy as np
import numpy.typing as npt

from loader.errors import InvalidOption
from loader.order import MAX_ROWS, lane_lengths, lane_ranks

__all__ = ["MIXTURE_ALGORITHM", "ROUND_POSITIONS", "Component", "Mixture", "MixtureEpoch", "StreamLanes", "whole_weights"]

Int64s = npt.NDArray[np.int64]

MIXTURE_ALGORITHM: Final = "mixture-philox-1"
ROUND_POSITIONS: Final = 4096
MAX_POSITIONS: Final = 1 << 62
_DIGEST_CONTEXT: Final = b"forebay mixture 1\0"
_KEY_CONTEXT: Final = b"forebay mixture-philox-1\0"


def whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole numbers that add up to 4,096, in proportion, by largest remainders.

    Raises
    ------
    InvalidOption
        If there are none, one is not above 0, or one is so small beside the others that nothing would be left of it.
    """
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise InvalidOption(f"weights={list(weights)}: expected one number above 0 for each dataset")
    exact = [Fraction(weight) for weight in weights]
    shares = [weight * ROUND_POSITIONS / sum(exact) for weight in exact]
    whole = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: whole[number] - shares[number])
    for number in by_remainder[: ROUND_POSITIONS - sum(whole)]:
        whole[number] += 1
    if not all(whole):
        raise InvalidOption(
            f"weights={list(weights)}: they are rounded to parts of {ROUND_POSITIONS}, and {weights[whole.index(0)]} would be "
            "none; leave that dataset out, or give it more"
        )
    return tuple(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One dataset of a mixture.

    Attributes
    ----------
    digest : str
        64 hex digits.
    num_rows, num_lanes : int
        N and L.
    weight : int
        Positions of each round that are its own.
    """

    digest: str
    num_rows: int
    num_lanes: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamLanes:
    """The lanes of all components, numbered through.

    Attributes
    ----------
    components, lanes : int64 [lanes]
        Whose lane it is, and which one.
    rows : int64 [lanes]
        Rows in it.
    strides, ranks : int64 [lanes]
        The lanes of its component, and ρ of it: row i of the lane has the number i * stride + rank in its dataset.
    """

    components: Int64s
    lanes: Int64s
    rows: Int64s
    strides: Int64s
    ranks: Int64s

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]]) -> StreamLanes:
        """The lanes of components with these numbers of rows and lanes."""
        counts = [num_lanes for _, num_lanes in shapes]
        return cls(
            components=np.repeat(np.arange(len(shapes)), counts),
            lanes=np.concatenate([np.arange(count) for count in counts]),
            rows=np.concatenate([lane_lengths(num_rows, num_lanes) for num_rows, num_lanes in shapes]),
            strides=np.repeat(np.array(counts, np.int64), counts),
            ranks=np.concatenate([lane_ranks(count) for count in counts]),
        )

    def __len__(self) -> int:
        return len(self.lanes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How some datasets share the positions of a stream.

    Parameters
    ----------
    components : tuple of Component
        Their weights add up to 4,096, and none is empty.
    seed : int
        0 to 2**64 - 1.
    epoch_samples : int
        Positions of an epoch.

    Attributes
    ----------
    digest : str
        Of the components' digests and weights, 64 hex digits.
    lanes : StreamLanes
        The lanes of all of them.
    lane_order : tuple of int
        The order of the lanes along which batches are cut.

    Raises
    ------
    InvalidOption
        If one of them is out of range.
    """

    components: tuple[Component, ...]
    seed: int
    epoch_samples: int
    digest: str = field(init=False, compare=False)
    lanes: StreamLanes = field(init=False, compare=False, repr=False)
    lane_order: tuple[int, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if sum(component.weight for component in self.components) != ROUND_POSITIONS:
            raise InvalidOption(f"weights of {[part.weight for part in self.components]}: expected a sum of {ROUND_POSITIONS}")
        for component in self.components:
            if component.num_rows < 1:
                raise InvalidOption(f"a dataset of a mixture has no rows (digest {component.digest}): leave it out")
        if not 1 <= self.epoch_samples <= MAX_ROWS:
            raise InvalidOption(f"epoch_samples={self.epoch_samples}: expected 1 to {MAX_ROWS}")
        listed = b"".join(bytes.fromhex(part.digest) + struct.pack("<I", part.weight) for part in self.components)
        object.__setattr__(self, "digest", blake3.blake3(_DIGEST_CONTEXT + listed).hexdigest())
        lanes = StreamLanes.of([(part.num_rows, part.num_lanes) for part in self.components])
        object.__setattr__(self, "lanes", lanes)
        common = math.lcm(*(part.num_lanes for part in self.components))
        places = list(zip(lanes.lanes.tolist(), lanes.strides.tolist(), lanes.components.tolist(), strict=True))
        order = sorted(range(len(lanes)), key=lambda lane: (places[lane][0] * (common // places[lane][1]), places[lane][2]))
        object.__setattr__(self, "lane_order", tuple(order))

    def epoch(self, number: int) -> MixtureEpoch:
        """Epoch `number`; raises `InvalidOption` where positions end."""
        return MixtureEpoch(self, number)

    def before(self, position: int) -> list[int]:
        """How many positions of each component lie before a position of the endless sequence."""
        number, place = divmod(position, ROUND_POSITIONS)
        inside = self._inside(number, np.array([place]))[0].tolist()
        return [number * part.weight + count for part, count in zip(self.components, inside, strict=True)]

    def _inside(self, number: int, places: Int64s) -> Int64s:
        """How many positions of each component lie before each place of a round [places, components]."""
        weights = tuple(part.weight for part in self.components)
        taken = _places(self.digest, self.seed, number, weights)
        return np.stack([own.searchsorted(places) for own in taken], axis=1)


class MixtureEpoch:
    """One epoch of a mixture.

    Attributes
    ----------
    mixture : Mixture
        Whose.
    begins : tuple of int
        The epoch in which each component is where this epoch begins. Steps are counted from the begin of that one.
    """

    def __init__(self, mixture: Mixture, number: int) -> None:
        start = number * mixture.epoch_samples
        if start + mixture.epoch_samples > MAX_POSITIONS:
            raise InvalidOption(
                f"epoch={number} of {mixture.epoch_samples} samples: expected fewer than {MAX_POSITIONS} in all"
            )
        self.mixture = mixture
        self._round, self._place = divmod(start, ROUND_POSITIONS)
        before = [divmod(count, part.num_rows) for count, part in zip(mixture.before(start), mixture.components, strict=True)]
        self.begins = tuple(epoch for epoch, _ in before)
        # What to add to counts that begin with this epoch's first round, for them to begin with the component's epoch.
        self._offsets = np.array([position for _, position in before]) - mixture._inside(self._round, np.array([self._place]))
        self._weights, self._rows = np.array([(part.weight, part.num_rows) for part in mixture.components]).T

    def counts(self, bounds: Int64s) -> Int64s:
        """How many rows of each component, since the begin of its epoch, lie before each position [bounds, components]."""
        rounds, places = np.divmod(self._place + bounds, ROUND_POSITIONS)
        inside = np.empty((len(bounds), len(self._weights)), np.int64)
        for number in np.unique(rounds).tolist():
            chosen = rounds == number
            inside[chosen] = self.mixture._inside(self._round + number, places[chosen])
        counts: Int64s = self._offsets + inside + rounds[:, None] * self._weights
        return counts

    def steps(self, bounds: Int64s) -> Int64s:
        """The first step of each lane that lies at or after each position of the epoch [bounds, lanes]."""
        lanes = self.mixture.lanes
        passes, positions = np.divmod(self.counts(bounds), self._rows)
        steps: Int64s = passes[:, lanes.components] * lanes.rows
        # ceil((position - ρ) / L), floor division being exact.
        steps -= (lanes.ranks - positions[:, lanes.components]) // lanes.strides
        return steps


@functools.lru_cache(maxsize=64)
def _places(digest: str, seed: int, number: int, weights: tuple[int, ...]) -> list[Int64s]:
    """The places of each component in a round, ascending."""
    if len(weights) == 1:
        return [np.arange(ROUND_POSITIONS)]
    material = _KEY_CONTEXT + bytes.fromhex(digest) + struct.pack("<QQ", seed, number)
    key = np.frombuffer(blake3.blake3(material).digest(length=16), "<u8").astype(np.uint64)
    draws = np.random.Philox(key=key).random_raw(ROUND_POSITIONS)
    labels = np.repeat(np.arange(len(weights)), weights)[np.argsort(draws, kind="stable")]
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(weights)[:-1])
