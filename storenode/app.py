"""The node's ASGI application: where every request enters, and where it leaves.

Chunks go straight to `storenode.chunks`, reads of records to `storenode.reads`, everything else to FastAPI. Around all of them
lies one layer of plain ASGI (a framework's middleware would put every body through a queue) that checks and states the
protocol version, asks for the token (`storenode.gate`), counts, ends requests whose client left or has no more time
(`storenode.exchange`), and catches what nobody caught: a defect costs one request, is logged with its traceback, and reaches
the client as a problem document or as a connection that was closed in the middle of a response.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from urllib.parse import quote

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from client.errors import StoreError
from client.wire import BATCH_PUT_PATH, PROTOCOL, PROTOCOL_HEADER, TIMEOUT_HEADER
from storenode import admin, batch, chunk_reads, gc_route, objects, record_batch, records, reshaping_route, snapshot_routes
from storenode.bodies import ResponseAborted
from storenode.budget import Budget
from storenode.chunk_batch import ChunkBatchRoute
from storenode.chunks import CHUNKS_PATH, ChunkRoutes
from storenode.exchange import Deadlines, Exchange
from storenode.gate import Gate
from storenode.metrics import Metrics
from storenode.node import Node
from storenode.openapi import install_schema
from storenode.problems import install_handlers, internal_error, problem_response
from storenode.reads import BUCKETS_PATH, RECORDS_PATH, RecordReads

__all__ = ["App", "Node", "create_app"]

log = logging.getLogger(__name__)

_CHUNK_ROUTE = CHUNKS_PATH + "{partition}/{id}"
_RECORD_ROUTE = RECORDS_PATH + "{bucket}/{key:path}"
_BUCKET_ROUTE = BUCKETS_PATH + "{bucket}"
_RECORDS = RECORDS_PATH.encode()
_PLAIN_READ = re.compile(
    rb"GET (?P<path>/v1/(?:records|buckets)/[!->@-~]+)(?:\?(?P<query>[!-~]*))? HTTP/1\.1\r\n"
    rb"host: [!-~]+\r\n%b: %d\r\n(?:authorization: Bearer (?P<token>[!-~]+)\r\n)?(?:%b: [1-9][0-9]{0,8}\r\n)?\r\n"
    % (PROTOCOL_HEADER.encode(), PROTOCOL, TIMEOUT_HEADER.encode())
)
_HEAD_NOW = b"HTTP/1.1 200 OK\r\ncontent-length: %%d\r\n%%b\r\n%b: %d\r\n\r\n" % (PROTOCOL_HEADER.encode(), PROTOCOL)


def create_app(node: Node) -> App:
    """The application of `node`. It blocks for a moment: the layout is read once, for the number of partitions."""
    metrics = Metrics(node.pools)
    num_partitions = node.cluster.layout.partitions
    api = FastAPI(
        title="Forebay storage node",
        docs_url=None,  # They load scripts from elsewhere.
        redoc_url=None,
        # A key may end in a slash by mistake; the answer to that is an error, not a detour.
        redirect_slashes=False,
    )
    api.state.node = node
    api.state.metrics = metrics
    api.state.num_partitions = num_partitions
    api.state.transfers = Budget("transfers of objects", limit=node.config.max_object_requests)
    api.state.batch_reads = Budget("batches of chunks that are read", limit=node.config.max_batch_reads)
    api.state.documents = Budget("bytes of documents", limit=node.config.max_document_bytes)
    names = (records.router, snapshot_routes.router, record_batch.router)
    routers = (*names, objects.router, batch.router, chunk_reads.router, admin.router, reshaping_route.router, gc_route.router)
    for router in routers:
        api.include_router(router)
    install_handlers(api, node_id=node.node_id, routers=routers)
    install_schema(api)
    reads = Budget("reads of chunks", limit=node.config.max_reads)
    chunks = ChunkRoutes(node, num_partitions=num_partitions, reads=reads, metrics=metrics)
    batches = ChunkBatchRoute(node, num_partitions=num_partitions, bodies=chunks.bodies, metrics=metrics)
    return App(node, api, chunks=chunks, batches=batches, reads=RecordReads(node, reads=reads), metrics=metrics)


class App:
    """The outermost application."""

    def __init__(
        self, node: Node, api: ASGIApp, *, chunks: ASGIApp, batches: ASGIApp, reads: RecordReads, metrics: Metrics
    ) -> None:
        self._node_id = node.node_id
        self._gate = Gate(node.tokens)
        self._api = api
        self._chunks = chunks
        self._batches = batches
        self._reads = reads
        self._metrics = metrics
        self._deadlines = Deadlines()

    def answer_now(self, request: bytes) -> list[bytes | bytearray] | None:
        """The whole response to a whole request, for the few reads that need no waiting; None: go the usual way.

        See `storenode.protocol`. What is not exactly as our own client writes it goes the usual way, too.
        """
        began_s = time.monotonic()
        match = _PLAIN_READ.fullmatch(request)
        if match is None:
            return None
        grant = self._gate.known(match["token"])
        if grant is None:
            return None
        try:
            answer = self._reads.answer_now(match["path"].decode(), match["query"] or b"", grant)
        except Exception:  # Whatever it is, the usual way meets it again and says so.
            return None
        if answer is None:
            return None
        record, body = answer
        described = b"x-forebay-record: " + record if record else b"content-type: application/json"
        self._metrics.answered(
            _RECORD_ROUTE if match["path"].startswith(_RECORDS) else _BUCKET_ROUTE,
            method="GET",
            status=200,
            seconds=time.monotonic() - began_s,
            received_bytes=0,
            sent_bytes=len(body),
        )
        return [_HEAD_NOW % (len(body), described), body]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        # Routed by the path as it was sent: decoded once, by whoever knows which of its slashes are data.
        scope = {**scope, "path": (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")}
        exchange = Exchange(scope, receive, send)
        app, route = self._route(scope["method"], scope["path"])
        try:
            await self._answer(exchange, app)
        finally:
            self._deadlines.remove(exchange)
            self._metrics.answered(
                route or _template(scope),
                method=scope["method"],
                status=exchange.status,
                seconds=time.monotonic() - exchange.began_s,
                received_bytes=exchange.received_bytes,
                sent_bytes=exchange.sent_bytes,
            )

    def _route(self, method: str, path: str) -> tuple[ASGIApp, str]:
        """Who answers, and what that is counted as; empty where the framework knows."""
        if path.startswith(CHUNKS_PATH):
            return self._chunks, _CHUNK_ROUTE
        if method == "GET" and path.startswith(RECORDS_PATH):
            return self._reads, _RECORD_ROUTE
        return (self._batches, BATCH_PUT_PATH) if path == BATCH_PUT_PATH else (self._api, "")

    async def _answer(self, exchange: Exchange, app: ASGIApp) -> None:
        scope = exchange.scope
        try:
            exchange.begin(self._deadlines)
            self._gate.admit(scope)
            await app(scope, exchange.receive, exchange.send)
        except StoreError as error:
            await self._refuse(exchange, error)
        except asyncio.CancelledError:
            if exchange.ended is None:
                raise  # The node stops.
            log.info("%s %s was ended: %s", scope["method"], scope["path"], exchange.ended)
            if isinstance(exchange.ended, StoreError):
                await self._refuse(exchange, exchange.ended)
        except ResponseAborted as error:
            # Left incomplete: the server closes the connection, which is what tells the client. As text, because a handler may
            # keep what it is given, and with the error all that its traceback refers to: maps of chunks.
            log.warning("%s %s was broken off: %s", scope["method"], scope["path"], str(error))
        except Exception:
            log.exception("%s %s met a defect", scope["method"], scope["path"])
            await self._refuse(exchange, internal_error())

    async def _refuse(self, exchange: Exchange, error: StoreError) -> None:
        if not exchange.status:
            response = problem_response(error, node_id=self._node_id)
            await response(exchange.scope, exchange.receive, exchange.send)


def _template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path_format", "unknown")
