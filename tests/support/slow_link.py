"""A way to a node that is slower than the others: a proxy in a process of its own, told what to do while it runs.

As a program, ``python -m tests.support.slow_link PORT`` prints the port that it listens on, and takes lines of two numbers
from its input: bytes a second of all that comes from the node (0: as fast as it comes), and seconds by which each request is
held back. Requests of any client must fit into one packet, as those for chunks do.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from client.client import Client
from client.cluster import ClusterView

__all__ = ["DetouredClient", "SlowLink"]

HOST = "127.0.0.1"
PIECE_BYTES = 16 * 1024


class SlowLink:
    """The proxy. A context manager.

    Attributes
    ----------
    url : str
        Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.slow_link", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = f"http://{HOST}:{int(self._process.stdout.readline())}"

    def slow_down(self, *, rate_bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        """From now on be as slow as this."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rate_bytes_per_s} {delay_s}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline()  # It has heard.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate(timeout=10)


class DetouredClient(Client):
    """A client that reaches some nodes at other addresses than the cluster says."""

    def __init__(self, endpoints: list[str], *, detours: dict[str, str]) -> None:
        super().__init__(endpoints)
        load = self.cluster._load

        def view() -> ClusterView:
            found = load()
            urls = {**found.endpoints, **{node: (url,) for node, url in detours.items() if node in found.endpoints}}
            return ClusterView(
                cluster_id=found.cluster_id, layouts=found.layouts, endpoints=urls, sockets=found.sockets, epoch=found.epoch
            )

        self.cluster._load = view


class _Proxy:
    def __init__(self, port: int) -> None:
        self._port = port
        self.rate_bytes_per_s = 0.0
        self.delay_s = 0.0
        self._free_s = 0.0  # When all that was let through has passed.

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Either end may go at any time, and with it the other; at the end of all, asyncio's streams would tell of a failure.
        with suppress(OSError, asyncio.CancelledError):
            node_reader, node_writer = await asyncio.open_connection(HOST, self._port)
            ways = [asyncio.create_task(self._ask(reader, node_writer)), asyncio.create_task(self._answer(node_reader, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            node_writer.transport.abort()
        writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES):
            await asyncio.sleep(self.delay_s)
            writer.write(piece)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES if self.rate_bytes_per_s else 16 * PIECE_BYTES):
            if self.rate_bytes_per_s:
                now_s = asyncio.get_running_loop().time()
                self._free_s = max(now_s, self._free_s) + len(piece) / self.rate_bytes_per_s
                await asyncio.sleep(self._free_s - now_s)
            writer.write(piece)
            await writer.drain()


async def _main(port: int) -> None:
    proxy = _Proxy(port)
    server = await asyncio.start_server(proxy.serve, HOST, 0, limit=PIECE_BYTES * 16)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        proxy.rate_bytes_per_s, proxy.delay_s = map(float, line.split())
        print("heard", flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
