"""Hosts on this machine: each a network and a mount namespace of its own, joined by a bridge, with a storage node on it.

The bridge has a namespace of its own, too: in this machine's, a Docker engine's packet filter drops what crosses any bridge.

All nodes have their data at the same path, as nodes that are installed alike have, and each host sees only its own there. So
whether a process is on a node's host is as it would be on two machines, and what crosses the network is counted by the kernel.
Needs root, and util-linux and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.client import Client
from storenode.lineage import create_cluster
from storenode.sqlite import SqliteMetaStore
from tests.support.cluster import eventually

__all__ = ["HostCluster", "can_have_hosts", "running_hosts"]

PORT = 7070
RANKS_S = 300.0
START_S = 120.0
_TOOLS = ("ip", "nsenter", "setpriv", "unshare")


def can_have_hosts() -> bool:
    """Whether this process may make namespaces, and has the tools."""
    if os.geteuid() != 0 or not all(map(shutil.which, _TOOLS)):
        return False
    return subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host.

    Attributes
    ----------
    pid : int
        A process that does nothing but keep its namespaces.
    """

    name: str
    address: str
    pid: int

    def start(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command on this host; it ends with this process. What it prints goes to `log` with another suffix."""
        with log.open("wb") as errors, log.with_suffix(".out").open("wb") as out:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--target={self.pid}", "--net", "--mount", "--", *command],
                env={**os.environ, **environment},
                stdout=out,
                stderr=errors,
            )

    def received_bytes(self) -> int:
        """What has come to this host over the network."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()
        return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("eth0:"))


class HostCluster:
    """Hosts with a node on each.

    Attributes
    ----------
    hosts : list of Host
        Their names are those that the layout has.
    """

    def __init__(self, directory: Path, hosts: Sequence[Host]) -> None:
        self.hosts = list(hosts)
        self._directory = directory

    @property
    def endpoints(self) -> list[str]:
        """The nodes' URLs, good on each host and outside of them."""
        return [f"http://{host.address}:{PORT}" for host in self.hosts]

    def run_ranks(self, arguments: Sequence[str], *, world_size: int, environment: Mapping[str, str]) -> list[bytes]:
        """Run ``python -m ARGUMENTS`` once for each rank, each on a host of its own, at once; what each has printed."""
        with ExitStack() as stack:
            ranks = []
            for rank, host in enumerate(self.hosts[:world_size]):
                own = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "FOREBAY_ENDPOINT": ",".join(self.endpoints)}
                log = self._directory / f"rank-{rank}.log"
                process = host.start([sys.executable, "-m", *arguments], environment={**environment, **own}, log=log)
                stack.callback(_end, process)
                ranks.append((process, log))
            printed = []
            for process, log in ranks:
                assert process.wait(timeout=RANKS_S) == 0, log.read_text()
                printed.append(log.with_suffix(".out").read_bytes())
            return printed


@contextmanager
def running_hosts(directory: Path, *, num_hosts: int, environment: Mapping[str, str]) -> Iterator[HostCluster]:
    """Hosts with a new cluster on them, whose nodes all answer.

    Parameters
    ----------
    environment : mapping
        Settings of the nodes.
    """
    link, subnet = f"fb{os.getpid()}", f"10.213.{os.getpid() % 250}"
    data = directory / "data"
    data.mkdir(parents=True)
    with ExitStack() as stack:
        hub = stack.enter_context(_namespaces())
        _run_in(hub, "ip", "link", "add", "bridge", "type", "bridge")
        _run_in(hub, "ip", "link", "set", "bridge", "up")
        subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", str(hub)], check=True)
        subprocess.run(["ip", "address", "add", f"{subnet}.254/24", "dev", link], check=True)
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
        _run_in(hub, "ip", "link", "set", "outside", "master", "bridge", "up")
        hosts = []
        for index in range(num_hosts):
            host = Host(name=f"host-{index}", address=f"{subnet}.{index + 1}", pid=stack.enter_context(_namespaces()))
            _connect(host, hub=hub, link=f"host-{index}", data=data)
            hosts.append(host)
        # Nodes begin no metadata in a file by themselves.
        with closing(SqliteMetaStore(directory / "meta.sqlite")) as store:
            create_cluster(store)
        cluster = HostCluster(directory, hosts)
        for host in hosts:
            settings = {
                "FOREBAY_DATA_DIR": str(data),
                "FOREBAY_META": f"sqlite:///{directory / 'meta.sqlite'}",
                "FOREBAY_BOOTSTRAP_NODES": str(num_hosts),
                "FOREBAY_HOST": host.address,
                "FOREBAY_PORT": str(PORT),
                "FOREBAY_MACHINE": host.name,
                "FOREBAY_INSECURE": "true",
                **environment,
            }
            command = [str(Path(sys.executable).with_name("forebay")), "node"]
            stack.callback(_end, host.start(command, environment=settings, log=directory / f"{host.name}.log"))
        with Client(cluster.endpoints) as client:
            eventually(lambda: _all_answer(client, num_hosts), what=f"{num_hosts} nodes answer", deadline_s=START_S)
        yield cluster


@contextmanager
def _namespaces() -> Iterator[int]:
    """A network and a mount namespace, kept by a process whose id this is."""
    keeper = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sleep", "infinity"], stdin=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _is_apart(keeper.pid), what="namespaces are made")
        yield keeper.pid
    finally:
        _end(keeper)


def _run_in(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", f"--target={pid}", "--net", "--mount", "--", *command], check=True)


def _connect(host: Host, *, hub: int, link: str, data: Path) -> None:
    """Give a host its address on the hub's bridge, and a disk of its own at the nodes' path."""
    _run_in(hub, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
    _run_in(hub, "ip", "link", "set", link, "master", "bridge", "up")
    disk = data.with_name(host.name)
    disk.mkdir()
    _run_in(host.pid, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
    _run_in(host.pid, "ip", "link", "set", "eth0", "up")
    _run_in(host.pid, "ip", "link", "set", "lo", "up")
    _run_in(host.pid, "mount", "--bind", str(disk), str(data))


def _all_answer(client: Client, num_nodes: int) -> bool:
    try:
        return len(client.cluster.refresh().endpoints) == num_nodes
    except Exception:  # Not yet; the caller has a deadline.
        return False


def _is_apart(pid: int) -> bool:
    return all(os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
