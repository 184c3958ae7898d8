"""Placement of 3 to 10,000 nodes, by the real code and without any node: ``make bench SUITE=placement``.

How long look-ups and whole tables take, how even the loads are beside the optimum (`benchmarks.balance`), and what changes of a
layout move beside the least that leads from the old loads to the new ones. ``ARGS="10 100"`` chooses the numbers of nodes.

Times are of the CPU, since all of this is computing: what else the machine does matters less.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.balance import optimal_loads, peak
from client.placement import DEFAULT_PARTITIONS, Layout, Node, choose_groups
from client.replica_table import replica_table

SIZES = (3, 10, 100, 1_000, 10_000)
ZONES = 10
REPLICAS = 3
LANES = 256
# Cold look-ups of one layout, or so long.
LOOKUPS, LOOKUPS_S = 2_000, 2.0


def layout_of(num_nodes: int, *, zones: Sequence[float] = (1.0,) * ZONES, partitions: int = DEFAULT_PARTITIONS) -> Layout:
    """A layout of equal nodes, each a host of its own, in zones of these relative sizes."""
    chance = random.Random(num_nodes)
    ends = np.cumsum(zones) / sum(zones)
    places = [int(np.searchsorted(ends, (number + 0.5) / num_nodes)) for number in range(num_nodes)]
    nodes = [
        Node(id=f"{chance.getrandbits(64):016x}", zone=f"zone-{zone}", host=f"host-{number}")
        for number, zone in enumerate(places)
    ]
    return Layout(version=1, partitions=partitions, nodes=tuple(nodes))


def timed(call: Callable[..., object], *args: object, **keywords: object) -> float:
    """Seconds of CPU that one call takes."""
    began_s = time.process_time()
    call(*args, **keywords)
    return time.process_time() - began_s


def speeds(sizes: Sequence[int]) -> Table:
    """Look-ups, tables and the choice of groups."""
    names = ("nodes", "first look-up, µs", "others", "p90", "warm", "table, s", "its peak, MiB", f"{LANES} groups, s")
    table = Table(*names, title="time and memory")
    for size in sizes:
        layout = layout_of(size)
        look_up = partial(layout.replicas, count=REPLICAS)
        first = timed(look_up, 0)
        cold, until_s = [], time.process_time() + LOOKUPS_S
        for partition in random.sample(range(1, layout.partitions), LOOKUPS):
            cold.append(timed(look_up, partition))
            if time.process_time() > until_s:
                break
        warm = min(timed(look_up, 0) for _ in range(1000))
        table_s = timed(replica_table, layout, count=REPLICAS)
        tracemalloc.start()
        replica_table(layout, count=REPLICAS)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        table.add_row(
            f"{size:,}",
            f"{first * 1e6:,.0f}",
            f"{statistics.median(cold) * 1e6:,.1f}",
            f"{sorted(cold)[len(cold) * 9 // 10] * 1e6:,.1f}",
            f"{warm * 1e6:.2f}",
            f"{table_s:.2f}",
            f"{peak_bytes / 2**20:.0f}",
            f"{timed(choose_groups, layout_of(size), name='w', num_groups=LANES, replicas=REPLICAS):.2f}",
        )
    return table


def balance(sizes: Sequence[int]) -> Table:
    """The load of the fullest node for its weight, relative to the mean, beside the least that zones allow."""
    table = Table("nodes", "zones", "partitions", "replicas", "max/mean", "optimum", "of the optimum", title="balance")
    for size in sizes:
        cases: list[tuple[str, Layout]] = [("equal", layout_of(size))]
        if size >= 10:
            cases.append(("3:6:12", layout_of(size, zones=(3, 6, 12))))
        if size >= 1_000:
            cases.append(("equal", layout_of(size, partitions=16 * DEFAULT_PARTITIONS)))
        for zones, layout in cases:
            held = replica_table(layout, count=REPLICAS)
            for replicas in (REPLICAS, REPLICAS - 1):
                loads = np.bincount(held[:, :replicas].ravel(), minlength=size) / layout.partitions
                found = peak(loads.tolist(), layout.nodes)
                least = peak(optimal_loads(layout.nodes, replicas=replicas), layout.nodes)
                table.add_row(
                    f"{size:,}",
                    zones,
                    f"{layout.partitions:,}",
                    str(replicas),
                    f"{found:.3f}",
                    f"{least:.3f}",
                    f"{found / least:.3f}",
                )
    return table


def steps(layout: Layout) -> Iterator[tuple[str, Layout]]:
    """Changes of `layout`, each by itself; then three of which each comes on top of the one before."""
    nodes, number = layout.nodes, len(layout.nodes)
    new = Node(id="joining", zone=nodes[0].zone, host="joining")
    without = replace(nodes[-1], state="draining")
    heavy = replace(nodes[number // 2], weight=2.0)
    zone = tuple(Node(id=f"of-new-zone-{n}", zone="new", host=f"new-{n}") for n in range(max(1, number // ZONES)))
    yield "add one", replace(layout, nodes=(*nodes, new))
    yield "drain one", replace(layout, nodes=(*nodes[:-1], without))
    yield "double one's weight", replace(layout, nodes=tuple(heavy if node.id == heavy.id else node for node in nodes))
    yield "add a zone", replace(layout, nodes=(*nodes, *zone))
    added = replace(layout, nodes=(*nodes, new))
    heavier = replace(added, nodes=tuple(heavy if node.id == heavy.id else node for node in added.nodes))
    yield "three at once", replace(heavier, nodes=tuple(without if node.id == without.id else node for node in heavier.nodes))


def changes(sizes: Sequence[int]) -> Table:
    """What changes move, in copies of 1,000 copies, beside what they must."""
    table = Table(
        "nodes", "change", "moved, ‰", "least, ‰", "of the least", "fair, ‰", "of the fair", "planned in, s", title="changes"
    )
    for size in sizes:
        before = layout_of(size)
        held = replica_table(before, count=REPLICAS)
        for name, after in steps(before):
            began_s = time.process_time()
            holds = replica_table(after, count=REPLICAS)
            moved, least = movement(held, holds, num_nodes=len(after.nodes))
            took_s = time.process_time() - began_s
            fair = fair_movement(before, after)
            table.add_row(
                f"{size:,}",
                name,
                *(f"{1000 * share:.2f}" for share in (moved, least)),
                ratio(moved, least),
                f"{1000 * fair:.2f}",
                ratio(moved, fair),
                f"{took_s:.2f}",
            )
    return table


def ratio(share: float, other: float) -> str:
    """How many times `other` is in `share`; a dash where nothing has to move."""
    return f"{share / other:.3f}" if other else "–"


def movement(held: npt.NDArray[np.int32], holds: npt.NDArray[np.int32], *, num_nodes: int) -> tuple[float, float]:
    """Shares of all copies: those that get a new holder, and those without which the loads could not become what they do.

    The nodes of the layout before are the first ones of the layout after, under the same indexes.
    """
    gained = (holds[:, :, None] != held[:, None, :]).all(axis=2).sum()
    more = np.bincount(holds.ravel(), minlength=num_nodes) - np.bincount(held.ravel(), minlength=num_nodes)
    return float(gained / holds.size), float(more.clip(min=0).sum() / holds.size)


def fair_movement(before: Layout, after: Layout) -> float:
    """The share of all copies that moves from the optimal loads of one layout to those of the other."""
    old, new = (
        dict(zip((n.id for n in layout.active), optimal_loads(layout.active, replicas=REPLICAS), strict=True))
        for layout in (before, after)
    )
    return sum(max(0.0, load - old.get(node_id, 0.0)) for node_id, load in new.items()) / sum(new.values())


def main() -> None:
    """Measure and print all tables."""
    sizes = [int(word) for word in sys.argv[1:]] or list(SIZES)
    console = Console(width=128)
    for measure in (speeds, balance, changes):
        console.print(measure(sizes))


if __name__ == "__main__":
    main()
