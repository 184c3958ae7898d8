"""Every call to the world outside, cut once: whatever a process was doing when it ended, the next one makes good."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from client.placement import Layouts, Node
from storenode.layouts import change_layouts, read_layouts
from storenode.ownership import Ownership
from storenode.retirement import Retirement
from tests.support.catalogs import memory_directory
from tests.support.crashing import World
from tests.support.filesystem import SimulatedCrash

KIB = 1024
OLD = {"large": bytes(range(256)) * 4 * 160, "small": b"old", "kept": b"untouched" * 9000}
NEW = {"large": bytes(reversed(range(256))) * 4 * 170, "small": b"new"}
Act = Callable[[World], object]


@pytest.fixture(scope="module")
def begun() -> Iterator[Path]:
    """A cluster that holds the old objects, to be copied by each run."""
    with memory_directory() as root:
        with World(root, "abcd") as world:
            for key, payload in OLD.items():
                world.store.put("data", key, payload)
            world.settle()
        yield root


def begin_again(root: Path, begun: Path) -> None:
    """Make the files below `root` those below `begun`; the directories are the same, and a thousand."""
    for folder, _, names in os.walk(root):
        for name in names:
            (Path(folder) / name).unlink()
    for folder, _, names in os.walk(begun):
        for name in names:
            path = Path(folder) / name
            shutil.copy2(path, root / path.relative_to(begun))


def run(begun: Path, act: Act, check: Callable[[World], object]) -> int:
    """Do `act` cut short at each of its calls, one run for each, and check what the next life finds; returns their number."""
    with memory_directory() as root:
        shutil.copytree(begun, root / "w")
        with World(root / "w", "abcd") as world:
            number = world.calls_of(lambda: act(world))
            check(world)
        for last in range(1, number + 1):
            begin_again(root / "w", begun)
            with World(root / "w", "abcd") as world:
                world.crash_at(last)
                # A thread that nobody waits for any more may be the one that ends.
                with suppress(SimulatedCrash):
                    act(world)
                world.restart()
                try:
                    check(world)
                except BaseException as error:
                    error.add_note(f"the process ended at call {last} of {number}: {world.points.named[-3:]}")
                    raise
    return number


def put_all(world: World) -> None:
    for key, payload in NEW.items():
        world.store.put("data", key, payload)


def put_group(world: World) -> None:
    world.store.put_many([("data", f"group-{number}", b"%d" % number) for number in range(4)])


def is_whole(world: World, *, keys: Mapping[str, tuple[bytes, ...]]) -> None:
    """Each object has one of its contents, and after the nodes have settled every copy that it should have."""
    for key, contents in keys.items():
        assert world.store.get("data", key) in contents
    world.settle()
    layout = world.cluster.layout
    for info in world.store.walk("data"):
        for ref in world.store.reader(info).refs():
            for name in layout.replicas(ref.partition, count=info.record.replicas):
                world.read(name, ref.partition, ref.id)
    assert all(node.follower.num_pending == 0 for node in world.nodes.values())


def test_a_put_leaves_the_old_object_or_the_new_one(begun: Path) -> None:
    def check(world: World) -> None:
        is_whole(world, keys={key: (OLD[key], NEW.get(key, OLD[key])) for key in OLD})
        put_all(world)
        is_whole(world, keys={key: (NEW.get(key, OLD[key]),) for key in OLD})

    assert run(begun, put_all, check) > 50


def test_of_a_group_each_object_is_there_or_not(begun: Path) -> None:
    def check(world: World) -> None:
        found = {info.key for info in world.store.walk("data")} - set(OLD)
        is_whole(world, keys={key: (key.removeprefix("group-").encode(),) for key in found} | {k: (v,) for k, v in OLD.items()})
        put_group(world)
        is_whole(world, keys={f"group-{number}": (b"%d" % number,) for number in range(4)})

    assert run(begun, put_group, check) > 10


def lose_disk(world: World) -> None:
    for partition, chunk_id in world.nodes["b"].names():
        world.nodes["b"].chunks.delete(partition, chunk_id)


def test_a_repair_is_gone_on_with(begun: Path) -> None:
    with memory_directory() as root:
        shutil.copytree(begun, root / "w")
        with World(root / "w", "abcd") as world:
            lose_disk(world)
        (root / "w" / "b" / "follower.json").unlink()

        def check(world: World) -> None:
            is_whole(world, keys={key: (payload,) for key, payload in OLD.items()})

        assert run(root / "w", World.settle, check) > 20


def change_layout(world: World) -> None:
    """C leaves, d comes; all nodes follow, and the older layout is retired."""
    known = read_layouts(world.meta)
    assert known is not None
    current = known.layouts.current
    if current.version == 1:
        nodes = (*current.nodes[:2], replace(current.nodes[2], state="draining"), Node(id="d"))
        newer = Layouts(current=replace(current, version=2, nodes=nodes), older=(current,))
        change_layouts(world.meta, known, newer)
    world.settle()
    fence = Ownership(world.meta, what="coordinator", node_id="a", lease=lambda: world.meta.grant(600.0)).claim()
    if fence is not None:
        Retirement(world.meta)(fence)


def test_a_change_of_the_layout_is_gone_on_with(begun: Path) -> None:
    def check(world: World) -> None:
        is_whole(world, keys={key: (payload,) for key, payload in OLD.items()})
        change_layout(world)
        is_whole(world, keys={key: (payload,) for key, payload in OLD.items()})
        assert world.cluster.layout.version == 2

    assert run(begun, change_layout, check) > 20
