"""Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights by Schindelhauer & Schomaker 2005), quick for many nodes.

Theory of operation
-------------------
Each node scores ``-weight / ln(u)`` on a partition, with u drawn from a hash of both, and the best scores win. The hash is
xxh3_64 of the node's key, which is made once, with the partition as seed: one call a node, and arithmetic that numpy can do
for whole tables (`client.replica_table`).

Of many nodes few can win. A score above t has probability ``1 - exp(-weight / t)``, so for a t that some 32 nodes exceed, each
node has a *floor*, the least hash that can: one comparison of integers sends all others away, and only the candidates are
scored and sorted. Floors are a little low, so that whoever is sent away certainly scored less than t. If the candidates
cannot settle the question, for want of another zone perhaps, a wider sieve is tried, and in the end all nodes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from client.checksum import xxh3

if TYPE_CHECKING:
    from client.placement import Node

__all__ = ["Pass", "Rendezvous", "Sieve"]

# Fewer would often not do; more take longer to score and to sort.
_CANDIDATES = 32
_WIDER = 16
# Of 2^64: some times what rounding can shift a floor.
_MARGIN = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Sieve:
    """What separates candidates from the rest.

    Attributes
    ----------
    score : float
        Whoever is no candidate scores less.
    floors : tuple of int
        For each node, the least hash of a candidate.
    """

    score: float
    floors: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over the ranking, in which each node is taken whose domain no taken node has.

    Attributes
    ----------
    domains : tuple of int
        The domain of each node; equal numbers mean the same one.
    num_domains : int
        How many there are, so how many nodes the passes up to this one can take.
    """

    domains: tuple[int, ...]
    num_domains: int


class Rendezvous:
    """The contest of `nodes` for partitions. A node is named by its index among them.

    Attributes
    ----------
    nodes : tuple of Node
        Those that take part.
    keys : tuple of bytes
        What is hashed of each.
    precedence : tuple of int
        Of two nodes with one score the one with the lower number wins.
    passes : tuple of Pass
        Distinct zones first, then distinct hosts, then any nodes.
    sieves : tuple of Sieve
        What to try, one after the other; the last one lets all nodes through.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.keys = tuple(xxh3(node.id.encode()).to_bytes(8, "little") for node in self.nodes)
        by_id = sorted(node.id for node in self.nodes)
        place = {node_id: number for number, node_id in enumerate(by_id)}
        self.precedence = tuple(place[node.id] for node in self.nodes)
        zones = _pass([node.zone for node in self.nodes])
        hosts = _pass([(node.zone, node.host) for node in self.nodes])
        self.passes = (zones, hosts, _pass(range(len(self.nodes))))
        self.sieves = tuple(self._sieves())

    def best(self, partition: int, *, count: int) -> tuple[int, ...]:
        """The nodes that hold a partition, best first: `count` of them, if there are so many."""
        for sieve in self.sieves:
            scores = self._scores(partition, sieve)
            ranked = sorted(scores, key=lambda index: (-scores[index], self.precedence[index]))
            chosen = self._choose(ranked, count=count)
            # Among what scored less, there may be better ones that were sent away.
            if chosen is not None and all(scores[index] >= sieve.score for index in chosen):
                return chosen
        raise AssertionError("all nodes together settle every question")

    def _sieves(self) -> list[Sieve]:
        sieves, wanted, total = [], _CANDIDATES, sum(node.weight for node in self.nodes)
        while 2 * wanted < len(self.nodes):
            score = total / wanted
            floors = (int(math.exp(-node.weight / score) * 2.0**64) - _MARGIN for node in self.nodes)
            sieves.append(Sieve(score=score, floors=tuple(max(floor, 0) for floor in floors)))
            wanted *= _WIDER
        return [*sieves, Sieve(score=0.0, floors=(0,) * len(self.nodes))]

    def _scores(self, partition: int, sieve: Sieve) -> dict[int, float]:
        # The one loop over all nodes: nothing in it but the hash and the comparison.
        hashed, nodes = xxhash.xxh3_64_intdigest, self.nodes
        candidates = [
            (index, draw)
            for index, (key, floor) in enumerate(zip(self.keys, sieve.floors, strict=True))
            if (draw := hashed(key, partition)) >= floor
        ]
        # The top 52 bits and a half: exact in a double, and never 0 or 1, whose logarithms would not do.
        return {index: -nodes[index].weight / math.log(((draw >> 12) + 0.5) / 2**52) for index, draw in candidates}

    def _choose(self, ranked: Sequence[int], *, count: int) -> tuple[int, ...] | None:
        chosen: list[int] = []
        for each in self.passes:
            wanted = min(count, each.num_domains)
            taken = {each.domains[index] for index in chosen}
            for index in ranked:
                if len(chosen) == wanted:
                    break
                if each.domains[index] not in taken:
                    chosen.append(index)
                    taken.add(each.domains[index])
            if len(chosen) < wanted:
                return None
        return tuple(chosen)


def _pass(domains: Sequence[Hashable]) -> Pass:
    numbers: dict[Hashable, int] = {}
    numbered = tuple(numbers.setdefault(domain, len(numbers)) for domain in domains)
    return Pass(domains=numbered, num_domains=len(numbers))
