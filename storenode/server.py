"""One storage node as a process: served, and taken down when it is told to stop.

The address is bound first, because a port in use is the most common mistake; then the node is assembled (`storenode.assembly`)
and answers. Until it listens, connections are refused, so that nobody waits for a node that waits itself. Stop (SIGTERM,
Ctrl-C): accept no more, finish the requests under way within a bound, take the node apart. A process that is killed instead
leaves nothing that the next start does not put right.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType

import uvicorn

from client.errors import Busy
from storenode.app import create_app
from storenode.assembly import running
from storenode.config import NodeConfig
from storenode.connections import Connections
from storenode.listener import BACKLOG, reserve, url_of
from storenode.problems import refusal
from storenode.protocol import NodeProtocol
from storenode.threads import BUSY_RETRY_S

__all__ = ["Ready", "serve"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a node tells when it answers."""

    node_id: str
    cluster_id: str
    endpoint: str
    data_dir: str

    def to_json(self) -> dict[str, str]:
        """The same as a JSON object."""
        return asdict(self)


def serve(config: NodeConfig, *, announce: Callable[[Ready], None]) -> None:
    """Run a node in this process until it is told to stop.

    Parameters
    ----------
    announce : callable
        Called once, when the node answers.

    Raises
    ------
    Misconfigured
        The address, the data directory or the metadata can't be used. Nothing was changed.
    StoreError
        The disk or the metadata engine failed at start.
    """
    # Raised in the main thread wherever it is, so that a stop during the start unwinds what was begun, too. While the
    # server runs it has handlers of its own and raises the signal again when it is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    _allow_many_files()
    with ExitStack() as stack:
        listener = stack.enter_context(reserve(config.host, config.port))
        endpoint = url_of(listener, host=config.host)
        node = stack.enter_context(running(config, listener=listener, endpoint=endpoint))
        ready = Ready(
            node_id=node.node_id,
            cluster_id=node.cluster.view().cluster_id,
            endpoint=endpoint,
            data_dir=str(config.data_dir),
        )
        options = uvicorn.Config(
            create_app(node),
            loop="uvloop",
            http=partial(NodeProtocol, connections=_connections(config, node.node_id)),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, round(config.shutdown_timeout_s)),
        )
        stack.callback(_limit_shutdown, config.shutdown_timeout_s)
        _Server(options, announce=lambda: announce(ready)).run(sockets=[listener])


def _allow_many_files() -> None:
    """Take all descriptors that the system grants: the bounds in the configuration add up to more than the usual 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connections(config: NodeConfig, node_id: str) -> Connections:
    limit = config.max_connections
    full = Busy(f"this node has {limit} connections, and a request on each of them", retry_after_s=BUSY_RETRY_S)
    return Connections(limit=limit, patience_s=config.stall_timeout_s, refusal=refusal(full, node_id=node_id))


def _limit_shutdown(timeout_s: float) -> None:
    """From now on the process has so long to end. Threads may wait for other nodes for longer than anybody waits for us."""

    def give_up() -> None:
        log.warning("some work did not end within %.0f s of the stop and is dropped; it was not acknowledged", timeout_s)
        # Not sys.exit, which would wait for those threads. Nothing that was acknowledged depends on them.
        os._exit(0)

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()


class _Server(uvicorn.Server):
    """uvicorn, which says when it answers."""

    def __init__(self, config: uvicorn.Config, *, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._announce()


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
