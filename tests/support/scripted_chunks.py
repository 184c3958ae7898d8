"""Nodes that answer a read when a test lets them, and that hear when nobody waits for it any more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Sequence

from client.attempt import Attempt
from client.chunks import ChunkClient
from client.manifest import Ref
from client.retry import Deadline
from tests.support.fake_cluster import FakeCluster

__all__ = ["Hold", "Script", "ScriptedChunks"]

WAIT_S = 10.0
Script = Callable[[memoryview, Deadline], None]
"""What a node makes of a read: it fills the buffer, or raises."""


class Hold:
    """A node that is silent until it is let go, or until nobody waits.

    Attributes
    ----------
    asked, ended : threading.Event
        It was asked; the attempt was ended.
    """

    def __init__(self, then: Script, *, received: int = 0) -> None:
        self._then = then
        self._received = received
        self._let_go = threading.Event()
        self.asked = threading.Event()
        self.ended = threading.Event()

    def let_go(self) -> None:
        """Let it answer."""
        self._let_go.set()

    def __call__(self, buffer: memoryview, deadline: Deadline) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            deadline.waits_on(ours)
            deadline.took(self._received)
            self.asked.set()
            ours.settimeout(0.005)
            for _ in range(int(WAIT_S / 0.005)):
                if self._let_go.is_set():
                    deadline.waits_on(None)
                    return self._then(buffer, deadline)
                try:
                    assert ours.recv(1) == b""
                except TimeoutError:
                    continue
                self.ended.set()
                deadline.waits_on(None)
                deadline.check()
        raise AssertionError("nobody let the node go, or ended its attempt")


class ScriptedChunks(ChunkClient):
    """Fetches from scripts, one for each node.

    Attributes
    ----------
    scripts : dict of str to Script
        By node.
    asked : list of str
        The nodes that were asked, in order.
    near : tuple of str
        Nodes that pass descriptors.
    """

    def __init__(self, fake: FakeCluster, scripts: dict[str, Script]) -> None:
        super().__init__(fake.cluster, fake.transport)
        self.scripts = scripts
        self.asked: list[str] = []
        self.near: tuple[str, ...] = ()
        self.verified: list[str] = []

    def colocated(self) -> Collection[str]:
        return self.near

    def verify(self, node_id: str, refs: Sequence[Ref]) -> list[str]:
        self.verified.append(node_id)
        return ["ok"] * len(refs)

    def fetch_into(
        self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, deadline: Deadline | None = None
    ) -> None:
        assert isinstance(deadline, Attempt)
        self.asked.append(node_id)
        self.scripts[node_id](buffer, deadline)
