"""Reads from nodes on this host, past the network: the node passes its chunk file's descriptor, and this process reads it.

Theory of operation
-------------------
The view of the cluster names a Unix socket for each node. Where such a path exists here, the node is taken to be on this
host, until the view is fetched again or something fails; nothing else is remembered, and a cluster elsewhere costs a look at
the file system for each view. Names prove nothing: that the descriptor arrived proves the host, and every answer says which
node of which cluster gave it. Where all nodes have their data at the same path, the first answer tells whose this one is.

A descriptor is used for one read and closed. While it is open its bytes stay, even if the node sets the chunk aside or dies.
`client.chunk_file` reads them.

Descriptors of many chunks may be had by one exchange.

What the node says of a chunk (it has none, it is corrupt) is its answer, and so is its silence. If the way itself fails,
`NotColocated` says so, and whoever called takes the other way.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from client.checksum import SEGMENT_BYTES, num_segments
from client.chunk_file import ChunkFile
from client.cluster import Cluster, ClusterView
from client.config import ClientConfig
from client.errors import DeadlineExceeded, ProtocolMismatch, StoreError, from_problem
from client.local_wire import MAX_HEAD_BYTES, ChunkAnswer, ChunkRequest, socket_address
from client.manifest import Ref
from client.process import HomeProcess
from client.retry import NEVER, Deadline

__all__ = ["Colocated", "NotColocated"]

log = logging.getLogger(__name__)

_PATIENCE_S = 0.25  # Whoever is silent for longer is asked in the usual way, and others with him.
_CUT_SHORT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_SHORTEST_TIMEOUT_S = 0.001  # To a socket 0 means not to wait at all, which is another mode.


class NotColocated(Exception):
    """A node can't be read on this host (any more); nothing was learned of the chunk."""


class Colocated:
    """Descriptors of chunks from the nodes on this host, over a few kept connections to each. Thread-safe.

    Parameters
    ----------
    cluster : Cluster
        Its view names the sockets.
    config : ClientConfig
        Whether to look at all, timeouts, the token and the number of idle connections kept.
    """

    def __init__(self, cluster: Cluster, config: ClientConfig) -> None:
        self._cluster = cluster
        self._config = config
        self._home = HomeProcess()
        self._lock = threading.Lock()
        self._view: ClusterView | None = None
        self._paths: dict[str, str] = {}
        self._idle: dict[str, list[socket.socket]] = {}
        self._closed = False

    def nodes(self) -> Collection[str]:
        """The nodes that seem to be on this host."""
        if not self._config.colocated:
            return ()
        view = self._cluster.view()
        if view is not self._view:
            paths = {node_id: path for node_id, path in view.sockets.items() if os.path.exists(path)}
            with self._lock:
                self._view, self._paths = view, paths
        return self._paths

    def present(self) -> set[str]:
        """The nodes that prove to be on this host, by their answers."""
        self._home.check()
        found = set()
        for node_id in list(self.nodes()):
            if node_id not in self._paths:  # Another node has answered at its path.
                continue
            try:
                with self._opened(node_id, [], deadline=Deadline(self._config.connect_timeout_s)):
                    found.add(node_id)
            except (OSError, ProtocolMismatch) as exc:
                log.info("node %s is not taken to be on this host: %s", node_id, exc)
        return found

    def read_into(
        self, node_id: str, ref: Ref, buffer: memoryview, *, start: int = 0, deadline: Deadline | None = None
    ) -> bool:
        """Fill `buffer` with the chunk's bytes from `start` on, which are the whole chunk or whole segments of it.

        Returns
        -------
        bool
            Whether they are the right bytes.

        Raises
        ------
        NotColocated
            The local way failed; the node is not in `nodes` any more until the view is fetched again.
        ChunkCorrupt
            The file was cut short, the disk can't read it, or the node says so.
        ChunkNotFound
            The node has no copy.
        DeadlineExceeded
            The node was silent for too long.
        """
        self._home.check()
        deadline = deadline or NEVER
        whole = len(buffer) == ref.size
        first, last = (0, 0) if whole else (start // SEGMENT_BYTES, num_segments(start + len(buffer)))
        try:
            with self._opened(node_id, [ref], first=first, last=last, deadline=deadline) as (answer, (fd,)):
                if fd is None:
                    assert answer.problem is not None
                    raise from_problem(dict(answer.problem), node_id=node_id)
                return ChunkFile(fd, node_id, ref, buffer, start).fill(answer.announced, deadline=deadline)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"node {node_id} did not pass chunk {ref} in time", key=str(ref), node_id=node_id) from exc
        except (OSError, ProtocolMismatch) as exc:
            deadline.check()
            self._forget(node_id)
            log.info("chunks of node %s are read over the network from now on: %s", node_id, exc)
            raise NotColocated(f"node {node_id}: {exc}") from exc

    def take_together(self, node_id: str, wanted: Sequence[tuple[Ref, memoryview]]) -> list[bool]:
        """Fill buffers with whole chunks, at most `MAX_TOGETHER`, that the node has in memory; for each whether it was.

        What was not filled says nothing of the chunk: whoever wants to know why reads it by `read_into`.
        """
        self._home.check()
        try:
            with self._opened(node_id, [ref for ref, _ in wanted], deadline=Deadline(_PATIENCE_S)) as (_, fds):
                return [
                    fd is not None and ChunkFile(fd, node_id, ref, buffer).fill_if_near()
                    for fd, (ref, buffer) in zip(fds, wanted, strict=True)
                ]
        except (OSError, StoreError) as exc:
            log.info("chunks of node %s are asked for one by one: %s", node_id, exc)
            return [False] * len(wanted)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are given back."""
        with self._lock:
            self._closed = True
            idle = [connection for pool in self._idle.values() for connection in pool]
            self._idle.clear()
        for connection in idle:
            connection.close()

    @contextmanager
    def _opened(
        self, node_id: str, refs: Sequence[Ref], *, first: int = 0, last: int = 0, deadline: Deadline
    ) -> Iterator[tuple[ChunkAnswer, list[int | None]]]:
        """What the node answers, and for each chunk its descriptor; `ProtocolMismatch` if it is another node."""
        chunks = [(ref.partition, ref.id) for ref in refs]
        request = ChunkRequest(chunks=chunks, first=first, last=last, token=self._config.token or "")
        message, fds = self._ask(node_id, request, deadline=deadline)
        try:
            answer = ChunkAnswer.decode(message)
            if (answer.node_id, answer.cluster_id) != (node_id, self._cluster.view().cluster_id):
                self._learn_owner(node_id, answer)
                raise ProtocolMismatch(f"node {answer.node_id} of cluster {answer.cluster_id} answers in its place")
            yield answer, answer.assign(fds, count=len(refs))
        finally:
            _close(fds)

    def _ask(self, node_id: str, request: ChunkRequest, *, deadline: Deadline) -> tuple[bytes, list[int]]:
        timeout_s = self._patience_s(deadline)
        connection, reused = self._borrow(node_id)
        try:
            try:
                deadline.waits_on(connection)
                answer = _exchange(connection, request, timeout_s=timeout_s)
            except OSError as exc:
                # The node closes connections that were idle for long, and all of them when it ends. Silence is neither.
                if not reused or isinstance(exc, TimeoutError):
                    raise
                deadline.waits_on(None)
                connection.close()
                connection = self._connect(node_id)
                deadline.waits_on(connection)
                answer = _exchange(connection, request, timeout_s=timeout_s)
        except BaseException:
            deadline.waits_on(None)
            connection.close()
            raise
        deadline.waits_on(None)
        self._give_back(node_id, connection)
        return answer

    def _borrow(self, node_id: str) -> tuple[socket.socket, bool]:
        with self._lock:
            idle = self._idle.get(node_id)
            connection = idle.pop() if idle else None
        return (self._connect(node_id), False) if connection is None else (connection, True)

    def _connect(self, node_id: str) -> socket.socket:
        path = self._paths.get(node_id)
        if path is None:  # Another thread has forgotten it meanwhile.
            raise ConnectionError("it was not to be reached a moment ago")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Without it, a node that is stopped and has a full backlog would hold us for ever.
            connection.settimeout(self._config.connect_timeout_s)
            with socket_address(path) as address:
                connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, node_id: str, connection: socket.socket) -> None:
        with self._lock:
            pool = self._idle.setdefault(node_id, [])
            if not self._closed and len(pool) < self._config.max_idle_connections:
                pool.append(connection)
                return
        connection.close()

    def _learn_owner(self, node_id: str, answer: ChunkAnswer) -> None:
        """Take the path of `node_id` from all nodes but the one that answered there."""
        with self._lock:
            path = self._paths.get(node_id)
            for other in [name for name, named in self._paths.items() if named == path and name != answer.node_id]:
                del self._paths[other]

    def _forget(self, node_id: str) -> None:
        with self._lock:
            self._paths.pop(node_id, None)
            idle = self._idle.pop(node_id, [])
        for connection in idle:
            connection.close()

    def _patience_s(self, deadline: Deadline) -> float:
        return max(_SHORTEST_TIMEOUT_S, min(self._config.read_timeout_s, deadline.remaining_s()))


def _exchange(connection: socket.socket, request: ChunkRequest, *, timeout_s: float) -> tuple[bytes, list[int]]:
    """Send a request and receive its answer with the descriptors in it, which are the caller's from then on."""
    connection.settimeout(timeout_s)
    connection.send(request.encode())
    # Not socket.recv_fds, which drops its flags up to Python 3.13: a fork at this moment would inherit the descriptors.
    fds = array.array("i")
    max_bytes = MAX_HEAD_BYTES + 8 * (request.last - request.first)
    room = socket.CMSG_LEN(max(1, len(request.chunks)) * fds.itemsize)
    message, ancillary, flags, _ = connection.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & _CUT_SHORT or not message:
        _close(fds)
        raise ConnectionError("there is more in the answer than was asked for" if message else "the node closed the connection")
    return message, fds.tolist()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
