"""TCP proxies between everybody, so that a test decides who hears whom.

Each link leads to one target. Who is at its other end is known, because only one process was given its address, or is looked
up: the kernel knows which process owns a connection. A rule for a pair says what becomes of its bytes:

    refuse        connections are reset, new ones too: the host answers, and nobody listens
    silence       nothing passes in either direction, and nobody is told: a cable was pulled
    no-requests   what the source sends is lost, what comes back passes
    no-replies    requests arrive and are carried out; the answers are lost
    lose-replies  every third answer is lost, and its connection with it

A connection that lost bytes passes none afterwards, and ends when its rule does.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["RULES", "Network", "Rule"]

Rule = Literal["refuse", "silence", "no-requests", "no-replies", "lose-replies"]
RULES: tuple[Rule, ...] = ("refuse", "silence", "no-requests", "no-replies", "lose-replies")
HOST = "127.0.0.1"
PIECE_BYTES = 256 * 1024
STOP_S = 10.0
_LOST: dict[str, tuple[Rule, ...]] = {"request": ("silence", "no-requests"), "reply": ("silence", "no-replies")}


@dataclass(eq=False, kw_only=True)
class _Connection:
    source: str
    target: str
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    has_hole: dict[str, bool] = field(default_factory=lambda: {"request": False, "reply": False})

    def abort(self) -> None:
        for writer in (self.near, self.far):
            if writer is not None:
                writer.transport.abort()


class Network:
    """The links, in a thread of their own. A context manager.

    Parameters
    ----------
    pids : callable
        The processes that may be at the other end of a link, by name; whoever else it is counts as `outside`.
    outside : str
        The name of everybody else.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]], *, outside: str) -> None:
        self._pids = pids
        self._outside = outside
        self._rules: dict[tuple[str, str], Rule] = {}
        self._connections: set[_Connection] = set()
        self._num_replies = 0
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="soak-links", daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        self._loop.close()

    def link(self, target: str, port: int, *, source: str | None = None) -> int:
        """A new link to `target`, which listens on `port`; returns the link's own port.

        Parameters
        ----------
        source : str, optional
            Whose link it is, if only one process is told of it.
        """
        return asyncio.run_coroutine_threadsafe(self._listen(target, port, source), self._loop).result(STOP_S)

    def cut(self, source: str, target: str, rule: Rule) -> None:
        """From now on this rule holds for what `source` asks of `target`."""
        self._set({(source, target): rule})

    def heal(self, source: str, target: str) -> None:
        """Nothing stands between the two any more."""
        self._set({(source, target): None})

    def heal_all(self) -> None:
        """Nothing stands between anybody."""
        self._set(dict.fromkeys(list(self._rules)))

    def abort_all(self) -> None:
        """End all connections; who makes new ones is looked up anew."""

        async def abort() -> None:
            for connection in list(self._connections):
                connection.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result(STOP_S)

    def _set(self, rules: Mapping[tuple[str, str], Rule | None]) -> None:
        async def apply() -> None:
            for pair, rule in rules.items():
                self._rules.pop(pair, None)
                if rule is not None:
                    self._rules[pair] = rule
            for connection in list(self._connections):
                pair = connection.source, connection.target
                if pair in rules and (rules[pair] == "refuse" or any(connection.has_hole.values())):
                    connection.abort()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result(STOP_S)

    async def _listen(self, target: str, port: int, source: str | None) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = source or self._owner(writer)
            # Cancelled at the end; asyncio's streams would tell of it as of a failure.
            with suppress(OSError, asyncio.CancelledError):
                await self._join(_Connection(source=name, target=target, near=writer), reader, port)

        server = await asyncio.start_server(serve, HOST, 0, limit=PIECE_BYTES)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _join(self, connection: _Connection, reader: asyncio.StreamReader, port: int) -> None:
        self._connections.add(connection)
        try:
            if self._rule(connection) == "refuse":
                return
            if self._rule(connection) == "silence":
                # Not even connected: what waits in the target's own queue would be answered later.
                connection.has_hole["request"] = True
                await reader.read()
                return
            far_reader, connection.far = await asyncio.open_connection(HOST, port, limit=PIECE_BYTES)
            ways = [
                asyncio.create_task(self._pass(connection, "request", reader, connection.far)),
                asyncio.create_task(self._pass(connection, "reply", far_reader, connection.near)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pass(
        self, connection: _Connection, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            rule = self._rule(connection)
            connection.has_hole[way] |= rule in _LOST[way]
            if connection.has_hole[way]:
                continue
            if way == "reply" and rule == "lose-replies":
                self._num_replies += 1
                if self._num_replies % 3 == 0:
                    return
            writer.write(piece)
            await writer.drain()

    def _rule(self, connection: _Connection) -> Rule | None:
        return self._rules.get((connection.source, connection.target))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _owner(self, writer: asyncio.StreamWriter) -> str:
        """The process at the other end of a connection that was accepted."""
        here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        if here is None or there is None:  # it is gone already
            return self._outside
        inode = _inode(local=there[1], remote=here[1])
        link = f"socket:[{inode}]"
        for name, pid in self._pids().items() if inode else ():
            with suppress(OSError):
                if any(_target(pid, fd) == link for fd in os.listdir(f"/proc/{pid}/fd")):
                    return name
        return self._outside


def _inode(*, local: int, remote: int) -> str:
    """Of the connection between two ports of loopback, at the end of the first; empty if there is none."""
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[1].endswith(f":{local:04X}") and fields[2].endswith(f":{remote:04X}"):
                return fields[9]
    return ""


def _target(pid: int, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""
