"""The stores that Forebay is measured against, as processes on loopback: nginx (the limit of a GET) and SeaweedFS."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Seaweed", "free_port", "nginx", "seaweed"]

_START_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seaweed:
    """A running SeaweedFS: master, three volume servers, a filer.

    Attributes
    ----------
    pids : tuple of int
        Of all its processes.
    """

    master: str
    filer: str
    pids: tuple[int, ...]


def free_port() -> int:
    """A TCP port that nobody listens on now; SeaweedFS uses the one 10,000 above it as well."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port: int = low.getsockname()[1]
            if port > 55_000:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Serve the files below `root` by sendfile, with one worker; yields the URL and the process ids."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise FileNotFoundError("nginx is not installed; on Debian: apt-get install nginx-light")
    port = free_port()
    work.mkdir(parents=True)
    config = work / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; worker_processes 1; pid {work}/pid; error_log {work}/error.log;
        user root;
        events {{ worker_connections 1024; }}
        http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000;
          client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work};
          scgi_temp_path {work};
          server {{ listen 127.0.0.1:{port}; root {root}; }} }}"""
    )
    url = f"http://127.0.0.1:{port}"
    with _process([binary, "-c", str(config), "-p", str(work)], work / "log") as pid:
        _wait(lambda: _status(url + "/") > 0, what="nginx")
        yield url, (pid,)


@contextmanager
def seaweed(weed: Path, work: Path) -> Iterator[Seaweed]:
    """SeaweedFS with three volume servers, files of the filer replicated to all (002), 8 MiB chunks."""
    master, filer = free_port(), free_port()
    with ExitStack() as stack:
        pids = []

        def start(name: str, kind: str, *arguments: str) -> None:
            directory = work / name
            (directory / "data").mkdir(parents=True)
            command = [str(weed), "-logdir", str(directory), kind, "-ip=127.0.0.1", *arguments]
            pids.append(stack.enter_context(_process(command, directory / "log", cwd=directory)))

        start("master", "master", f"-port={master}", f"-mdir={work}/master/data", "-defaultReplication=002")
        _wait(lambda: _status(f"http://127.0.0.1:{master}/cluster/status") == 200, what="SeaweedFS's master")
        for number in range(3):
            name = f"volume-{number}"
            data = f"-dir={work}/{name}/data"
            start(name, "volume", f"-port={free_port()}", data, f"-master=127.0.0.1:{master}", "-max=50")
        _wait(lambda: _assignable(master), what="SeaweedFS's volume servers")
        placement = "-defaultReplicaPlacement=002"
        start("filer", "filer", f"-port={filer}", f"-master=127.0.0.1:{master}", "-maxMB=8", placement)
        _wait(lambda: _status(f"http://127.0.0.1:{filer}/") == 200, what="SeaweedFS's filer")
        yield Seaweed(master=f"http://127.0.0.1:{master}", filer=f"http://127.0.0.1:{filer}", pids=tuple(pids))


@contextmanager
def _process(command: list[str], log: Path, *, cwd: Path | None = None) -> Iterator[int]:
    """A process that is ended, and waited for, when the context is left; what it says goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _status(url: str) -> int:
    """HTTP status of a GET, 0 while nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def _assignable(master: int) -> bool:
    """Whether the master can place a file on three volume servers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{master}/dir/assign?replication=002", timeout=5) as response:
            return "fid" in json.load(response)
    except OSError:
        return False


def _wait(ready: Callable[[], bool], *, what: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} was not ready after {_START_S:.0f} s")
        time.sleep(0.05)  # Polling is all there is: a foreign server does not say when it is ready.
