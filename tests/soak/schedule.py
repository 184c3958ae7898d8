"""Which faults strike what and when: a pure function of the seed.

Faults come in rounds. In a round one to three strike, each for a while, and they overlap; then everything is healed, and the
cluster has a moment to breathe, so that work gets done as well. What is damaged on a disk outlasts its round, until it was
repaired: the nemesis keeps damage to one disk at a time, for more than W−1 copies lost is more than was promised.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tests.soak.links import RULES

__all__ = ["FAULTS", "Fault", "FaultKind", "Round", "rounds"]

FaultKind = Literal[
    "kill",
    "pause",
    "part",
    "isolate",
    "part-clients",
    "part-etcd",
    "kill-etcd-leader",
    "pause-etcd",
    "isolate-member",
    "stale-member",
    "fill",
    "flip",
    "cut",
    "wipe",
    "lone-copy",
    "clock",
    "scrub",
    "drain",
    "remove",
    "weight",
    "zone",
    "gc",
]
FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)
OF_ETCD = ("kill-etcd-leader", "pause-etcd", "isolate-member", "gc")  # or of no node
MAX_FAULTS = 3
SECONDS = (2.0, 10.0)
CALM_S = (2.0, 5.0)
CLOCK_S = (60, 8 * 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes
    ----------
    after_s, for_s : float
        From the beginning of the round, and how long it lasts.
    node, other : int
        Which nodes it is about; `other` is another one, or a member of etcd.
    rule : str
        What becomes of bytes, for faults of the network.
    both_ways : bool
        Whether the other one's requests meet the same.
    amount : int
        Seconds that a clock is off; how many files are damaged; megabytes that are left;
        tenths of a weight; the number of a zone.
    """

    kind: FaultKind
    after_s: float
    for_s: float
    node: int
    other: int
    rule: str
    both_ways: bool
    amount: int

    def __str__(self) -> str:
        details = {
            "part": f" and node {self.other}: {self.rule}{', both ways' if self.both_ways else ''}",
            "isolate": f" from all nodes: {self.rule}{', both ways' if self.both_ways else ''}",
            "part-clients": f": {self.rule}",
            "part-etcd": f" from {'all members' if self.both_ways else f'member {self.other}'}: {self.rule}",
            "clock": f" by {self.amount} s",
            "flip": f", {self.amount} files",
            "cut": f", {self.amount} files",
            "pause-etcd": f": member {self.other}",
            "isolate-member": f" {self.other} from the others: {self.rule}{', both ways' if self.both_ways else ''}",
            "stale-member": f" hears of member {self.other} alone, which hears nothing",
            "lone-copy": " hears of no other, and then its disk is lost",
            "weight": f": {self.amount} tenths",
            "zone": f": zone {self.amount}",
        }
        about = "" if self.kind in OF_ETCD else f" node {self.node}"
        return f"{self.kind}{about}{details.get(self.kind, '')}, after {self.after_s:.1f} s for {self.for_s:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Faults that overlap, and the seconds of calm after them."""

    faults: tuple[Fault, ...]
    calm_s: float


def rounds(seed: int, *, kinds: Sequence[FaultKind], num_nodes: int, num_members: int) -> Iterator[Round]:
    """Rounds without end. Before a kind comes again, each of the others has come."""
    rng = random.Random(f"schedule {seed}")
    left: list[FaultKind] = []
    while True:
        faults = []
        for _ in range(rng.randint(1, MAX_FAULTS)):
            if not left:
                left = rng.sample(kinds, len(kinds))
            faults.append(_fault(left.pop(), rng, num_nodes=num_nodes, num_members=num_members))
        yield Round(faults=tuple(sorted(faults, key=lambda fault: fault.after_s)), calm_s=rng.uniform(*CALM_S))


def _fault(kind: FaultKind, rng: random.Random, *, num_nodes: int, num_members: int) -> Fault:
    node = rng.randrange(num_nodes)
    if kind in ("part-etcd", "stale-member") or kind in OF_ETCD:
        other = rng.randrange(num_members)
    else:
        other = (node + rng.randrange(1, num_nodes)) % num_nodes
    if kind == "clock":
        amount = rng.choice((-1, 1)) * rng.randint(*CLOCK_S)
    elif kind in ("weight", "zone"):
        amount = rng.randint(5, 20) if kind == "weight" else rng.randint(1, 4)
    else:
        amount = rng.choice((3, 20, 60))
    return Fault(
        kind=kind,
        after_s=rng.uniform(0.0, 3.0),
        for_s=rng.uniform(*SECONDS),
        node=node,
        other=other,
        rule=rng.choice(RULES),
        both_ways=rng.random() < 0.5,
        amount=amount,
    )
