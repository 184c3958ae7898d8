"""Asking nodes which chunks they hold: few calls for many chunks, and a wrong answer for nobody."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from client.chunks import ChunkClient
from client.errors import EndpointUnreachable
from client.manifest import Ref, make_ref
from client.touches import Touches

WAIT_S = 10.0
REFS = [make_ref(b"%d" % number, partitions=64) for number in range(40)]


class Nodes(ChunkClient):
    """Holds every second chunk. A call waits for `free`, and `called` tells that there is one."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.down: set[str] = set()
        self.called = threading.Semaphore(0)
        self.free = threading.Event()

    def touch(self, node_id: str, refs: Sequence[Ref], *, epoch: int, rehash: bool = True, fetch: bool = False) -> list[bool]:
        self.calls.append((node_id, len(refs)))
        self.called.release()
        assert self.free.wait(WAIT_S)
        if node_id in self.down:
            raise EndpointUnreachable("down", node_id=node_id)
        return [REFS.index(ref) % 2 == 0 for ref in refs]


def test_a_lone_chunk_is_asked_for_at_once() -> None:
    nodes = Nodes()
    nodes.free.set()
    touches = Touches(nodes)
    assert [touches.holds("a", ref, epoch=1) for ref in REFS[:3]] == [True, False, True]
    assert nodes.calls == [("a", 1)] * 3


def test_those_who_wait_are_asked_for_together() -> None:
    nodes, touches = Nodes(), None
    touches = Touches(nodes)
    with ThreadPoolExecutor(len(REFS)) as pool:
        first = pool.submit(touches.holds, "a", REFS[0], epoch=3)
        assert nodes.called.acquire(timeout=WAIT_S)
        others = [pool.submit(touches.holds, "a", ref, epoch=3) for ref in REFS[1:]]
        while len(touches._waiting["a"]) < len(REFS) - 1:  # Until all of them wait.
            threading.Event().wait(0.001)
        nodes.free.set()
        answers = [future.result(WAIT_S) for future in (first, *others)]
    assert answers == [number % 2 == 0 for number in range(len(REFS))]
    assert nodes.calls == [("a", 1), ("a", len(REFS) - 1)]


def test_nodes_do_not_wait_for_each_other() -> None:
    nodes = Nodes()
    touches = Touches(nodes)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(touches.holds, node, REFS[0], epoch=1) for node in "ab"]
        assert nodes.called.acquire(timeout=WAIT_S)
        assert nodes.called.acquire(timeout=WAIT_S)
        nodes.free.set()
        assert [future.result(WAIT_S) for future in futures] == [True, True]


def test_a_node_that_can_not_be_asked_holds_nothing() -> None:
    nodes = Nodes()
    nodes.free.set()
    nodes.down.add("a")
    touches = Touches(nodes)
    assert not touches.holds("a", REFS[0], epoch=1)
    nodes.down.clear()
    assert touches.holds("a", REFS[0], epoch=1)
