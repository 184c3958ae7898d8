"""The door for processes on this host: it passes the descriptors of chunk files over a Unix socket in the data directory.

One thread serves all connections in turn. A request is one message (`client.local_wire`), its answer follows at once, and
nothing is ever waited for in between: who does not take its answer, sends what makes no sense, or falls silent for long,
loses the connection. The bytes are read, and checked, by the process that got the descriptor.

Who may connect is who may read the chunk files themselves: the socket has their mode, for owner and group, and the data
directory above it keeps everybody else out. So the operator opens the door to a group by opening the directory to it.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.checksum import Announced, num_segments
from client.errors import ChunkCorrupt, InvalidRange, StoreError, to_problem
from client.local_wire import MAX_REQUEST_BYTES, SOCKET_NAME, ChunkAnswer, ChunkRequest, socket_address
from storenode.chunkstore import ChunkStore

__all__ = ["ChunkDoor"]

log = logging.getLogger(__name__)

_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1  # When there are no descriptors left, the listener stays readable, and trying on would only burn time.
_MODE = 0o660  # To connect takes the right to write; it gives no more than chunk files of mode 0640 do.


class ChunkDoor:
    """Passes chunk files to processes on this host, in a thread.

    Parameters
    ----------
    directory : Path
        The data directory, which this process owns.
    node_id, cluster_id : str
        Named in every answer.
    store : ChunkStore
        The chunks.
    repair : callable
        Told of a copy, by partition and id, that is found damaged when it is opened. Returns at once.
    max_connections : int
        Connections beyond these are closed at once.
    idle_s : float
        After so long without a request a connection is closed.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        node_id: str,
        cluster_id: str,
        store: ChunkStore,
        repair: Callable[[int, bytes], None],
        max_connections: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = str(directory / SOCKET_NAME)
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._store = store
        self._repair = repair
        self._max_connections = max_connections
        self._idle_s = idle_s
        self._clock = clock
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._selector = selectors.DefaultSelector()
        self._used_s: dict[socket.socket, float] = {}  # The longest unused first.
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="forebay-colocated", daemon=True)

    def start(self) -> None:
        """Open the door. Where the file system has no sockets it stays shut, and everybody reads over HTTP."""
        try:
            with socket_address(self._path) as address:
                with suppress(FileNotFoundError):
                    os.unlink(address)  # Of our last life: nobody else has this directory.
                self._listener.bind(address)
                # Before it listens, so that nobody connects by the mode that the umask left.
                os.chmod(address, _MODE)
                self._listener.listen(_BACKLOG)
        except OSError as exc:
            log.warning("processes on this host will read over HTTP, because %s can't be opened: %s", self._path, exc)
            return
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Shut it. Descriptors that were passed stay good."""
        self._stopping = True
        if self._thread.ident is not None:
            with suppress(OSError):  # The thread has ended before.
                self._listener.shutdown(socket.SHUT_RDWR)  # Wakes the thread.
            self._thread.join()
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(timeout=self._idle_s):
                    ready = key.fileobj
                    assert isinstance(ready, socket.socket)
                    if ready is self._listener:
                        self._accept()
                    else:
                        self._serve(ready)
                self._close_idle()
        finally:
            # Even if a defect ends the thread: nobody shall wait at a door that no one opens.
            self._listener.close()
            for connection in list(self._used_s):
                self._close(connection)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as exc:
            if not self._stopping:
                log.warning("a process on this host can't be let in: %s", exc)
                time.sleep(_ACCEPT_PAUSE_S)
            return
        if len(self._used_s) >= self._max_connections:
            connection.close()
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self._used_s[connection] = self._clock()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the message that has come, or close the connection."""
        try:
            # Without room for descriptors: the kernel drops those that somebody sends us.
            message, _, flags, _ = connection.recvmsg(MAX_REQUEST_BYTES)
            if not message or flags & socket.MSG_TRUNC:
                self._close(connection)
                return
            # Does not wait: there is no room only if the process does not take its answers.
            self._answer(connection, message)
        except OSError:
            self._close(connection)
        except Exception:
            log.exception("a request of a process on this host met a defect")
            self._close(connection)
        else:
            del self._used_s[connection]
            self._used_s[connection] = self._clock()

    def _answer(self, connection: socket.socket, message: bytes) -> None:
        fds: list[int] = []
        try:
            try:
                answer = self._answer_to(ChunkRequest.decode(message), fds)
            except StoreError as error:
                answer = self._signed(problem=to_problem(error))
            socket.send_fds(connection, [answer.encode()], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _answer_to(self, request: ChunkRequest, fds: list[int]) -> ChunkAnswer:
        """Append the descriptors that are passed, the caller's from then on."""
        # No token is asked for: who gets here may open the chunk files by the socket's mode, with a token or without.
        missing, problem = [], None
        for number, (partition, chunk_id) in enumerate(request.chunks):
            try:
                if request.last:
                    return self._signed(announced=self._announced(request, fds))
                # Whoever reads a whole chunk checks it against its reference.
                fds.append(self._store.open_file(partition, chunk_id))
            except StoreError as error:
                missing.append(number)
                problem = problem or to_problem(error)
        return self._signed(missing=tuple(missing), problem=problem)

    def _announced(self, request: ChunkRequest, fds: list[int]) -> Announced:
        ((partition, chunk_id),) = request.chunks
        try:
            with self._store.open_chunk(partition, chunk_id) as chunk:
                if not request.first <= request.last <= num_segments(chunk.size):
                    raise InvalidRange(f"segments {request.first} to {request.last} of a chunk of {chunk.size} bytes")
                announced = Announced(check=chunk.check, segment_checks=chunk.segment_checks(request.first, request.last))
                fds.append(chunk.detach())
                return announced
        except ChunkCorrupt:
            self._repair(partition, chunk_id)
            raise

    def _signed(self, **said: Any) -> ChunkAnswer:
        return ChunkAnswer(node_id=self._node_id, cluster_id=self._cluster_id, **said)

    def _close_idle(self) -> None:
        now_s = self._clock()
        while self._used_s and now_s - (oldest := next(iter(self._used_s.items())))[1] > self._idle_s:
            self._close(oldest[0])

    def _close(self, connection: socket.socket) -> None:
        self._used_s.pop(connection)
        self._selector.unregister(connection)
        connection.close()
