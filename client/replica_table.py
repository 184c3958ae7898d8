"""The replicas of all partitions at once, for whoever plans or surveys a layout: what `Layout.replicas` says, by numpy.

A layout of 10,000 nodes and 65,536 partitions has 655 million scores. They are hashed in blocks that stay in the CPU's cache,
and nearly all are dropped at once by the sieve (`client.rendezvous`); the few candidates are scored one by one by the same
logarithm as a single look-up, since numpy's own may differ from it in the last bit.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from client.placement import Layout
from client.rendezvous import Rendezvous, Sieve

__all__ = ["replica_table", "seeded_xxh3"]

Indexes: TypeAlias = npt.NDArray[np.int32]
Hashes: TypeAlias = npt.NDArray[np.uint64]

# Of hashes: with what is computed on the way, a part of a core's own cache.
_BLOCK = 32_768
# Partitions whose candidates are sorted together. Bounds memory; more would not be quicker.
_STRIDE = 4096


def replica_table(layout: Layout, *, count: int) -> Indexes:
    """The replicas of every partition, best first.

    Parameters
    ----------
    layout : Layout
        Who takes part.
    count : int
        Replicas wanted. Those of fewer are its first columns.

    Returns
    -------
    ndarray of int32
        ``[partitions, replicas]``: indexes into ``layout.nodes``. Fewer columns than `count` where there are fewer nodes.
    """
    contest = layout.rendezvous
    table = np.empty((layout.partitions, min(count, len(contest.nodes))), dtype=np.int32)
    for first in range(0, layout.partitions, _STRIDE):
        partitions = np.arange(first, min(first + _STRIDE, layout.partitions), dtype=np.uint64)
        _fill(table[first : first + len(partitions)], contest, partitions)
    index = {node.id: number for number, node in enumerate(layout.nodes)}
    return np.array([index[node.id] for node in contest.nodes], dtype=np.int32)[table]


def _fill(rows: Indexes, contest: Rendezvous, partitions: Hashes) -> None:
    open_rows = np.arange(len(partitions))
    for sieve in contest.sieves:
        if len(open_rows):
            chosen, settled = _best(contest, partitions[open_rows], sieve, columns=rows.shape[1])
            rows[open_rows[settled]] = chosen[settled]
            open_rows = open_rows[~settled]


def _best(contest: Rendezvous, partitions: Hashes, sieve: Sieve, *, columns: int) -> tuple[Indexes, npt.NDArray[np.bool_]]:
    """The replicas of some partitions, and for which of them the candidates settle the question."""
    row, node, draw = _candidates(contest, partitions, sieve)
    weight = np.array([each.weight for each in contest.nodes])
    unit = ((draw >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
    score = -weight[node] / np.fromiter(map(math.log, unit.tolist()), dtype=np.float64, count=len(unit))
    order = np.lexsort((np.array(contest.precedence, dtype=np.int32)[node], -score, row))
    row, node, score = row[order], node[order], score[order]
    sizes = np.bincount(row, minlength=len(partitions))
    column = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ranked = np.full((len(partitions), max(1, sizes.max(initial=0))), -1, dtype=np.int32)
    scores = np.full(ranked.shape, -1.0)
    ranked[row, column], scores[row, column] = node, score
    return _choose(contest, ranked, scores, least=sieve.score, columns=columns)


def _candidates(
    contest: Rendezvous, partitions: Hashes, sieve: Sieve
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Hashes]:
    """The candidates of some partitions as (row, node, hash)."""
    keys = np.frombuffer(b"".join(contest.keys), dtype="<u8").astype(np.uint64)
    floors = np.array(sieve.floors, dtype=np.uint64)
    found = []
    height = max(1, _BLOCK // max(1, len(keys)))
    for first in range(0, len(partitions), height):
        draws = seeded_xxh3(keys, partitions[first : first + height, None])
        row, node = np.nonzero(draws >= floors)
        found.append((row + first, node, draws[row, node]))
    rows, nodes, hashes = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(nodes), np.concatenate(hashes)


def seeded_xxh3(keys: Hashes, seeds: Hashes) -> Hashes:
    """xxh3_64 of keys of 8 little-endian bytes with seeds below 2^32: the part of XXH3 that hashes 8 bytes."""
    swapped = seeds.astype(np.uint32).byteswap().astype(np.uint64) << np.uint64(32)
    flip = np.uint64(_SECRET) - (seeds ^ swapped)
    turned = (keys << np.uint64(32)) | (keys >> np.uint64(32))
    mixed = turned ^ flip
    mixed ^= _rotated(mixed, 49) ^ _rotated(mixed, 24)
    mixed *= np.uint64(_PRIME)
    mixed ^= (mixed >> np.uint64(35)) + np.uint64(8)
    mixed *= np.uint64(_PRIME)
    mixed ^= mixed >> np.uint64(28)
    return mixed


def _rotated(values: Hashes, bits: int) -> Hashes:
    high = values << np.uint64(bits)
    high |= values >> np.uint64(64 - bits)
    return high


# From the specification of XXH3: PRIME_MX2, and two words of its default secret, combined.
_PRIME = 0x9FB21C651E98DF25
_SECRET = 0x1CAD21F72C81017C ^ 0xDB979083E96DD4DE


def _choose(
    contest: Rendezvous, ranked: Indexes, scores: npt.NDArray[np.float64], *, least: float, columns: int
) -> tuple[Indexes, npt.NDArray[np.bool_]]:
    """`Rendezvous.best` for many partitions: each row of `ranked` are its candidates, best first, then -1."""
    rows = np.arange(len(ranked))
    chosen = np.full((len(ranked), columns), -1, dtype=np.int32)
    settled = np.ones(len(ranked), dtype=np.bool_)
    column = 0
    for each in contest.passes:
        # The entry of node -1 is the last one; it is never free.
        domains = np.array([*each.domains, -1], dtype=np.int32)
        domain = domains[ranked]
        free = ranked >= 0
        for earlier in range(column):
            free &= domain != domains[chosen[:, earlier]][:, None]
        while column < min(columns, each.num_domains):
            best = free.argmax(axis=1)
            settled &= free[rows, best] & (scores[rows, best] >= least)
            chosen[:, column] = ranked[rows, best]
            free &= domain != domain[rows, best][:, None]
            column += 1
    return chosen, settled
