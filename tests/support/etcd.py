"""etcd for tests: members as processes on loopback, with the means to kill, pause and compact them.

Where etcd is not installed, tests that want it are skipped, unless ``FOREBAY_TEST_ETCD=required`` says that this is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.request import Request, urlopen

import pytest

from storenode.etcd import EtcdMetaStore
from storenode.etcd_address import Endpoint, EtcdAddress
from tests.support.signals import stop_process

__all__ = ["Etcd", "Member", "etcd_one", "etcd_three", "free_port", "running_etcd"]

REQUIRED_VARIABLE = "FOREBAY_TEST_ETCD"
DEADLINE_S = 30.0
POLL_S = 0.05
HOST = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class Member:
    """One process."""

    command: Sequence[str]
    endpoint: Endpoint
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it as a power cut would, also while it is paused."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections and says nothing."""
        assert self.process is not None
        stop_process(self.process.pid, self.process.send_signal)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@dataclass(slots=True, kw_only=True)
class Etcd:
    """An etcd cluster. Each address that it gives has a prefix of its own, so that tests do not see each other's keys."""

    members: list[Member]
    tls: SSLContext | None
    num_prefixes: int = field(default=0)

    def address(self, *members: Member) -> EtcdAddress:
        """A new prefix, on these members or all."""
        self.num_prefixes += 1
        endpoints = tuple(member.endpoint for member in members or self.members)
        return EtcdAddress(endpoints=endpoints, prefix=f"t{self.num_prefixes}", tls=self.tls is not None)

    def ask(self, path: str, message: Any = None, *, member: Member | None = None, timeout_s: float = 5.0) -> Any:
        """One request to one member."""
        endpoint = (member or self.members[0]).endpoint
        url = f"{'https' if self.tls else 'http'}://{endpoint}{path}"
        with urlopen(Request(url, json.dumps(message or {}).encode()), timeout=timeout_s, context=self.tls) as answer:
            return json.load(answer)

    def leader(self) -> Member:
        """Whoever leads."""
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            for member in self.members:
                try:
                    status = self.ask("/v3/maintenance/status", member=member)
                except (OSError, HTTPException):
                    continue
                if status.get("leader", "0") == status["header"]["member_id"]:
                    return member
            time.sleep(POLL_S)
        raise AssertionError(f"no leader within {DEADLINE_S} s")

    def leases(self) -> list[str]:
        return [lease["ID"] for lease in self.ask("/v3/lease/leases").get("leases", [])]

    def left_s(self, lease: str) -> int:
        """Whole seconds that a lease has left; below 0 if it is gone."""
        return int(self.ask("/v3/lease/timetolive", {"ID": lease}, member=self.leader()).get("TTL", 0))

    def end_leases(self) -> None:
        """Revoke all, so that none of a test ends in the middle of the next one."""
        for lease in self.leases():
            self.ask("/v3/lease/revoke", {"ID": lease})

    def compact(self, revision: int) -> None:
        """As the cluster's owner would have it done."""
        self.ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    def names(self) -> list[bytes]:
        """All keys of all prefixes."""
        kvs = self.ask("/v3/kv/range", {"key": "AA==", "range_end": "AA==", "keys_only": True}).get("kvs", [])
        return [b64decode(kv["key"]) for kv in kvs]

    def await_health(self) -> None:
        """Wait until every member takes part."""
        end_s = time.monotonic() + DEADLINE_S
        for member in self.members:
            while True:
                assert member.process is None or member.process.poll() is None, member.log.read_text()[-2000:]
                try:
                    self.ask("/v3/kv/range", {"key": "AA=="}, member=member)
                    break
                except (OSError, HTTPException):
                    assert time.monotonic() < end_s, member.log.read_text()[-2000:]
                    time.sleep(POLL_S)

    @contextmanager
    def store(self, address: EtcdAddress, **settings: Any) -> Iterator[EtcdMetaStore]:
        """A store that is closed at the end."""
        store = EtcdMetaStore(address, tls=self.tls, **settings)
        try:
            yield store
        finally:
            store.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _program() -> str:
    found = shutil.which("etcd")
    if found is not None:
        return found
    message = "etcd is not installed; Debian's package is etcd-server"
    if os.environ.get(REQUIRED_VARIABLE) == "required":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running_etcd(
    directory: Path,
    *,
    num_members: int = 1,
    options: Sequence[str] = (),
    tls: SSLContext | None = None,
    peer_link: Callable[[str, int], int] = lambda name, port: port,
) -> Iterator[Etcd]:
    """A new cluster, ended with the block.

    Parameters
    ----------
    options : sequence of str
        Added to the command of each member.
    tls : ssl.SSLContext, optional
        How to reach members that speak TLS with clients.
    peer_link : callable
        The port at which its peers reach the member of this name, which listens for them on the one that is given.
    """
    program = _program()
    ports = [free_port() for _ in range(num_members)]
    reached = [f"http://{HOST}:{peer_link(f'm{n}', port)}" for n, port in enumerate(ports)]
    cluster = ",".join(f"m{n}={peer}" for n, peer in enumerate(reached))
    members = []
    for n, port in enumerate(ports):
        endpoint = Endpoint(host=HOST, port=free_port())
        url = f"{'https' if tls else 'http'}://{endpoint}"
        settings = {
            "name": f"m{n}",
            "data-dir": str(directory / f"m{n}"),
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": f"http://{HOST}:{port}",
            "initial-advertise-peer-urls": reached[n],
            "initial-cluster": cluster,
            "log-level": "error",
            "logger": "zap",
        }
        # What is tested is not etcd's durability, and a busy disk would make it slow.
        command = [program, "--unsafe-no-fsync", *(f"--{name}={value}" for name, value in settings.items()), *options]
        members.append(Member(command=command, endpoint=endpoint, log=directory / f"m{n}.log"))
    etcd = Etcd(members=members, tls=tls)
    with ExitStack() as stack:
        for member in members:
            stack.callback(member.kill)
            member.start()
        etcd.await_health()
        yield etcd


@pytest.fixture(scope="session")
def etcd_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One member, for all tests that break nothing."""
    with running_etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(scope="session")
def etcd_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Three members, for all tests that break nothing."""
    with running_etcd(tmp_path_factory.mktemp("etcd"), num_members=3) as etcd:
        yield etcd
