"""The commands that run nodes: ``forebay up`` a whole cluster on this machine, ``forebay node`` one node. And `token_cli`.

What they run is imported when they run: every ``forebay`` command loads this module to know that they exist.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.output import AsJson, Output
from client.errors import InternalError, StoreError, to_problem
from storenode import meta_cli, token_cli
from storenode.token_cli import SecretFile

if TYPE_CHECKING:
    from storenode.embedded import EmbeddedCluster, NodeExit

__all__ = ["node", "register", "up"]

DEFAULT_PORT = 7070


def register(app: typer.Typer) -> None:
    """Add the commands to the ``forebay`` command line."""
    app.command()(up)
    # `forebay node` runs a node; `forebay node ls` and its like are the client's, and work where no node can run.
    for group in app.registered_groups:
        if group.name == "node" and group.typer_instance is not None:
            group.typer_instance.info.no_args_is_help = False
            group.typer_instance.info.help = "Run one node, or list nodes and change who holds data."
            group.typer_instance.callback(invoke_without_command=True)(node)
    meta_cli.register(app)
    token_cli.register(app)


def up(
    data: Annotated[Path, typer.Option(help="Where everything is kept; made if it is missing.")],
    nodes: Annotated[int | None, typer.Option(help="How many nodes; by default as many as there are, 3 in a new one.")] = None,
    port: Annotated[
        int, typer.Option(help="Port of the first node, the others take the next ones; 0: free ports.")
    ] = DEFAULT_PORT,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole cluster on this machine, in the foreground. Ctrl-C or SIGTERM stops it; its data stays."""
    from storenode.embedded import EmbeddedCluster

    output = Output(as_json=as_json)
    cluster = EmbeddedCluster(data, nodes=nodes, port=port, secret_file=secret_file)
    # Raised wherever the main thread is, so that the nodes are stopped in order on the way out.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    with cluster:
        output.document(_describe(cluster), _what_next(cluster, secret_file))
        while any(cluster.running(node_id) for node_id in cluster.node_ids):
            ended = cluster.wait_for_exit()
            if ended is not None:
                _tell(output, ended, num_left=sum(map(cluster.running, cluster.node_ids)))
    raise InternalError(f"no node of the cluster in {cluster.directory} runs any more")


def node(
    ctx: typer.Context,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve addresses that other machines reach without a secret: to everybody.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one node in the foreground, configured by FOREBAY_DATA_DIR, FOREBAY_META and so on; or say who holds data."""
    if ctx.invoked_subcommand is not None:
        return
    from storenode.process import die_with_parent

    die_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        _serve(insecure=insecure, port=port, as_json=as_json)
    except StoreError as error:
        if as_json:
            _print_line(to_problem(error))  # for a parent process that waits for one line
        raise


def _serve(*, insecure: bool, port: int | None, as_json: bool) -> None:
    from storenode.config import load_node_config
    from storenode.server import Ready, serve

    given: dict[str, Any] = {}
    if insecure:
        given["insecure"] = True
    if port is not None:
        given["port"] = port

    def announce(ready: Ready) -> None:
        if as_json:
            _print_line({"event": "ready", **ready.to_json()})
        else:
            print(f"node {ready.node_id} of cluster {ready.cluster_id} answers at {ready.endpoint}", flush=True)

    serve(load_node_config(**given), announce=announce)


def _print_line(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _describe(cluster: EmbeddedCluster) -> dict[str, Any]:
    nodes = [
        {
            "id": node_id,
            "endpoint": cluster.endpoint(node_id),
            "data_dir": str(cluster.data_dirs[node_id]),
            "pid": cluster.pid(node_id),
            "spare": node_id in cluster.spares,
        }
        for node_id in cluster.node_ids
    ]
    return {"event": "ready", "data": str(cluster.directory), "endpoints": list(cluster.endpoints), "nodes": nodes}


def _what_next(cluster: EmbeddedCluster, secret_file: Path | None) -> str:
    first = cluster.endpoints[0]
    where = "" if first == f"http://127.0.0.1:{DEFAULT_PORT}" else f"--endpoint {first} "
    count = len(cluster.node_ids)
    number = "1 node is" if count == 1 else f"{count} nodes are"
    placed = count - len(cluster.spares)
    replicas = "" if placed >= 3 else f" --replicas {placed}"
    command = "node add --all" if cluster.spares else f"bucket create my-bucket{replicas}"
    spare = f", {len(cluster.spares)} of them spare" if cluster.spares else ""
    token = f"export FOREBAY_TOKEN=$(forebay token create --admin --secret-file {shlex.quote(str(secret_file))}) && "
    next_ = f"{token if secret_file else ''}forebay {where}{command}"
    return f"{number} up at {', '.join(cluster.endpoints)}{spare}. Next, in another terminal: {next_}"


def _tell(output: Output, ended: NodeExit, *, num_left: int) -> None:
    how = f"was killed by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"ended with code {ended.code}"
    text = (
        f"node {ended.node_id} {how}; {num_left} of the nodes run on. Its log: {ended.log_path}. "
        "Stop the cluster and run `forebay up` again to bring it back"
    )
    value = {"event": "node-exit", "node_id": ended.node_id, "code": ended.code, "num_left": num_left}
    if output.as_json:
        output.document({**value, "log": str(ended.log_path)}, text)
    else:
        output.note(text)
