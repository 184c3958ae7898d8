"""A node's door for processes on its host, in this process, with the chunks behind it; and one that a test writes itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.local_wire import SOCKET_NAME, socket_address
from client.manifest import Ref
from storenode.chunkstore import ChunkStore
from storenode.colocated import ChunkDoor
from tests.support.peers import UnsyncedFileSystem

__all__ = ["CLUSTER_ID", "Door", "connected", "open_door", "scripted_door"]

CLUSTER_ID = "fake"
WAIT_S = 10.0


@dataclass(kw_only=True)
class Door:
    """A door and what is behind it."""

    root: Path
    store: ChunkStore
    door: ChunkDoor
    repairs: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return str(self.root / SOCKET_NAME)

    def chunk_file(self, ref: Ref) -> Path:
        return self.root / "chunks" / ref.hex[:2] / f"{ref.partition:08x}-{ref.hex}"


@contextmanager
def open_door(
    root: Path, *payloads: tuple[Ref, bytes], node_id: str = "node-0", cluster_id: str = CLUSTER_ID, **bounds: Any
) -> Iterator[Door]:
    """The door of a node whose data directory is `root`, with these chunks, for the length of the block."""
    store = ChunkStore(root, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=UnsyncedFileSystem())
    for ref, payload in payloads:
        store.put(ref.partition, ref.id, payload)
    repairs: list[tuple[int, bytes]] = []
    door = ChunkDoor(
        root,
        node_id=node_id,
        cluster_id=cluster_id,
        store=store,
        repair=lambda partition, chunk_id: repairs.append((partition, chunk_id)),
        **{"max_connections": 8, "idle_s": 60.0, **bounds},
    )
    door.start()
    try:
        yield Door(root=root, store=store, door=door, repairs=repairs)
    finally:
        door.stop()


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    """A connection to the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(WAIT_S)
        with socket_address(path) as address:
            connection.connect(address)
        yield connection


@contextmanager
def scripted_door(
    root: Path, answer: bytes, *, fds: Sequence[int] = (), reply: Callable[[], bool] = lambda: True
) -> Iterator[str]:
    """A socket at which every request is answered with these bytes and descriptors, or with nothing; gives its path."""
    path = str(root / SOCKET_NAME)
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the listener was shut down
                return
            connections.append(connection)
            with suppress(OSError):
                while connection.recv(1 << 16):
                    if reply():
                        socket.send_fds(connection, [answer], fds)
            connection.close()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen()
        thread = threading.Thread(target=serve, name="scripted door")
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)
            assert not thread.is_alive()
