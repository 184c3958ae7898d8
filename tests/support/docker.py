"""A Docker engine for tests, and the cluster of docker-compose.yml on it.

The engine that answers is used; where none does, one is started with all that it keeps in a directory of its own. Images are
not pulled: what they are built from is made of Debian's packages by debootstrap, once, and kept in ``~/.cache/forebay-tests``.
Where an engine can't be had, tests that want it are skipped, unless ``FOREBAY_TEST_DOCKER=required`` says that this is a
failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.etcd import free_port

__all__ = ["Compose", "Engine", "composed", "until"]

REQUIRED_VARIABLE = "FOREBAY_TEST_DOCKER"
ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "forebay-tests"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates,etcd-server,etcd-client"
PROGRAMS = ("docker", "dockerd", "debootstrap", "unshare", "iptables")
DEADLINE_S = 120.0
POLL_S = 0.2


def until(condition: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """What `condition` returns once that is true; fails the test, naming `what`, if that does not happen in time."""
    end_s = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"did not happen within {deadline_s} s: {what}"
        time.sleep(POLL_S)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A Docker engine, and how to speak to it.

    Attributes
    ----------
    host : str
        Its address, as ``DOCKER_HOST`` has it; empty for the one that is reached without.
    """

    host: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that speak to it."""
        return {**os.environ, "DOCKER_BUILDKIT": "0", **({"DOCKER_HOST": self.host} if self.host else {})}

    def docker(self, *arguments: str, **options: Any) -> str:
        """Run ``docker`` and return what it prints; fails with what it says."""
        return output("docker", *arguments, env=self.environment, **options)

    def answers(self) -> bool:
        """Whether there is one."""
        asked = subprocess.run(["docker", "version"], env=self.environment, capture_output=True, check=False)
        return asked.returncode == 0


def output(*command: str, env: Mapping[str, str] | None = None, stdin: Any = subprocess.DEVNULL) -> str:
    """What a command prints; one that fails fails the test, with all that it said."""
    done = subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def _require_docker() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += [] if _compose_command() else ["docker-compose"]
    missing += [] if os.geteuid() == 0 else ["root's rights"]
    if not missing:
        return
    message = f"no cluster in containers here, for want of {', '.join(missing)}"
    if os.environ.get(REQUIRED_VARIABLE) == "required":
        pytest.fail(message)
    pytest.skip(message)


def _compose_command() -> tuple[str, ...]:
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    if shutil.which("docker") is None:
        return ()
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return () if asked.returncode else ("docker", "compose")


@contextmanager
def _engine() -> Iterator[Engine]:
    """The engine that there is, or one for the length of the block."""
    if Engine().answers():
        yield Engine()
        return
    # Not in pytest's directory: a socket's path has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="forebay-docker-"))
    engine = Engine(host=f"unix://{directory}/docker.sock")
    options = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid"}
    command = ["dockerd", f"--host={engine.host}", *(f"--{name}={directory / path}" for name, path in options.items())]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: engine.answers() or daemon.poll() is not None, what="dockerd answers")
        assert daemon.poll() is None, (directory / "log").read_text()[-4000:]
        yield engine
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=DEADLINE_S)
        shutil.rmtree(directory)


def _base_image(engine: Engine) -> str:
    """A stand-in for Python's and etcd's images; its name."""
    changes = ["ENV PIP_CERT=" + str(AUTHORITIES)]
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if found.returncode == 0:
        changes.append(f"ENV PIP_INDEX_URL={found.stdout.strip()}")
    # What could change what is in it.
    seen = hashlib.sha256(f"{SUITE} {PACKAGES}".encode() + AUTHORITIES.read_bytes()).hexdigest()[:16]
    tarball = CACHE / f"base-{seen}.tar"
    if not tarball.exists():
        _make_base(tarball)
    name = f"forebay-test-base:{seen}"
    with tarball.open("rb") as file:
        engine.docker("import", *(f"--change={change}" for change in changes), "-", name, stdin=file)
    return name


def _make_base(tarball: Path) -> None:
    tarball.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="forebay-base-") as directory:
        root = Path(directory, "root")
        # In a mount namespace of its own: what it mounts in there is gone with it, and neither packed nor deleted.
        output("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root))
        for path in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
            path.unlink()
        # Whom this machine trusts, so do containers on it.
        shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
        made = tarball.with_suffix(f".{os.getpid()}")
        output("tar", "--numeric-owner", "-C", str(root), "-cf", str(made), ".")
        made.replace(tarball)


@dataclass(slots=True, kw_only=True)
class Compose:
    """The cluster of docker-compose.yml under a name of its own.

    Attributes
    ----------
    ports : tuple of int
        Of the nodes on 127.0.0.1, the fourth's included.
    """

    engine: Engine
    project: str
    base: str
    ports: tuple[int, ...] = field(default_factory=lambda: tuple(free_port() for _ in range(4)))

    @property
    def image(self) -> str:
        """What nodes run."""
        return f"{self.project}-node"

    @property
    def environment(self) -> dict[str, str]:
        """Of ``docker-compose``. A token in our own reaches the client's container, too."""
        return {
            **self.engine.environment,
            "COMPOSE_PROJECT_NAME": self.project,
            "FOREBAY_BASE": self.base,
            "ETCD_IMAGE": self.base,
            "FOREBAY_IMAGE": self.image,
            "FOREBAY_ETCD": f"{self.project}-etcd",
            **{f"FOREBAY_PORT_{number}": str(port) for number, port in enumerate(self.ports, 1)},
        }

    def endpoint(self, number: int) -> str:
        """Where this machine reaches a node."""
        return f"http://127.0.0.1:{self.ports[number - 1]}"

    def run(self, *arguments: str, fourth: bool = False) -> str:
        """Run ``docker-compose``; what it prints."""
        files = ("-f", "docker-compose.yml") + (("-f", "docker-compose.fourth.yml") if fourth else ())
        return output(*_compose_command(), *files, *arguments, env=self.environment)

    def forebay(self, *arguments: str) -> str:
        """The command line, in a container."""
        return self.run("run", "--rm", "client", *arguments)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        listed = ("label=com.docker.compose.project=" + self.project, "label=com.docker.compose.service=" + service)
        return self.engine.docker("ps", "--all", "--quiet", *(f"--filter={which}" for which in listed)).strip()

    def inspect(self, service: str) -> Any:
        """All that the engine knows of it."""
        return json.loads(self.engine.docker("inspect", self.container(service)))[0]

    def is_healthy(self, service: str) -> bool:
        state = self.inspect(service)["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def await_health(self, *services: str) -> None:
        """Wait until they are healthy."""
        for service in services:
            until(lambda service=service: self.is_healthy(service), what=f"{service} is healthy")  # type: ignore[misc]

    def kill(self, service: str) -> None:
        """As ``docker kill`` does: the engine does not start it again, `run("up", ...)` does."""
        self.engine.docker("kill", self.container(service))


@contextmanager
def composed() -> Iterator[Compose]:
    """The cluster, built and healthy; afterwards it is gone, with all its data."""
    _require_docker()
    with ExitStack() as stack:
        engine = stack.enter_context(_engine())
        base = _base_image(engine)
        compose = Compose(engine=engine, project=f"forebay-test-{os.getpid()}", base=base)
        stack.callback(engine.docker, "rmi", "--force", base)
        stack.callback(compose.run, "down", "--volumes", "--rmi", "all", "--remove-orphans", fourth=True)
        try:
            compose.run("up", "--detach")
            compose.await_health("node-1", "node-2", "node-3")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{compose.run('logs', '--no-color', '--tail=20')}") from exc
        yield compose
