"""Requests that end before their answer: the client left, or has no more time. What is done for them stops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from client.catalog import MAX_BATCH_BYTES, Commit
from client.checksum import content_digest
from client.frames import encode_chunks
from client.manifest import make_ref
from client.record import BucketPolicy, Content, ObjectRecord
from client.wire import BATCH_GET_PATH, BATCH_PUT_PATH, chunk_path, encode_json
from storenode.exchange import LOOK_S, Exchange
from tests.support.asgi import Answer, ask, call
from tests.support.nodes import PARTITIONS, PEERS, TestBed, open_node

PAYLOAD = bytes(range(256)) * 800
REF = make_ref(PAYLOAD, partitions=PARTITIONS)
CHUNK = chunk_path(REF.partition, REF.hex)
WATCH = "/v1/watch/data?after=1&timeout_s=20"
LEAVES, LATE = "leaves", "has no more time"


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        opened.node.catalog.create_bucket("data", BucketPolicy())
        yield opened


class Steps:
    """A blocking step of a request: how often it was taken. The first time, it lasts until the request has been ended."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.num_taken = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.num_taken += 1
        self.begun.set()
        assert self.go_on.wait(10.0)
        return self._real(*args, **kwargs)


async def end_in_the_first_step(
    bed: TestBed, monkeypatch: pytest.MonkeyPatch, steps: Steps, how: str, method: str, path: str, body: bytes
) -> Answer:
    """Send a request whose client leaves, or has no more time, while the first step is taken."""
    leave = asyncio.Event()
    headers = {"x-forebay-timeout-ms": "60000"}
    asking = asyncio.create_task(ask(bed.app, method, path, body=body, headers=headers, leave=leave))
    assert await asyncio.to_thread(steps.begun.wait, 10.0)
    if how == LEAVES:
        leave.set()
    else:
        monkeypatch.setattr("storenode.exchange.time", SimpleNamespace(monotonic=lambda: time.monotonic() + 60.0))
    await asyncio.sleep(2 * LOOK_S)  # The next look at deadlines comes before this ends.
    steps.go_on.set()
    answer = await asking
    # Whatever is still under way comes to its end.
    for pool in bed.node.pools.all():
        while pool.pending:  # noqa: ASYNC110 - in other threads
            await asyncio.sleep(0.001)
    return answer


def long_work(name: str) -> tuple[str, str, bytes, str, str]:
    """Method, path and body of a request with many steps, and what takes each of them: a part of the node, and a method."""
    names = encode_json({"chunks": [[REF.partition, REF.hex]] * 5})
    items = encode_json({"items": [["data", "k"]] * 1000})
    small = [(make_ref(b"%d" % number, partitions=PARTITIONS), b"%d" % number) for number in range(1000)]
    return {
        "verify": ("POST", "/v1/chunks:verify", names, "store", "verify"),
        "touch": ("POST", "/v1/chunks:touch", names, "store", "touch"),
        "batch get": ("POST", BATCH_GET_PATH, items, "catalog", "lookup_many"),
        "batch put": ("POST", BATCH_PUT_PATH, encode_chunks(small), "store", "put_group"),
        "watch": ("GET", WATCH, b"", "catalog", "watch"),
    }[name]


@pytest.mark.parametrize("how", [LEAVES, LATE])
@pytest.mark.parametrize("name", ["verify", "touch", "batch get", "batch put", "watch"])
def test_no_further_step_is_taken(bed: TestBed, monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    method, path, body, part, step = long_work(name)
    monkeypatch.setattr("storenode.admin._REHASHED_BYTES", 1)  # a step for each copy, small as they are
    bed.node.store.put(REF.partition, REF.id, PAYLOAD)
    owner = type(getattr(bed.node, part))
    steps = Steps(getattr(owner, step))
    monkeypatch.setattr(owner, step, lambda *args, **kwargs: steps(*args, **kwargs))
    answer = asyncio.run(end_in_the_first_step(bed, monkeypatch, steps, how, method, path, body))
    assert steps.num_taken == 1
    if how == LATE:
        assert (answer.status, answer.error) == (504, "deadline-exceeded")
    else:
        assert answer.status == 0


@pytest.mark.parametrize("how", [LEAVES, LATE])
def test_no_further_piece_of_an_object_is_read(bed: TestBed, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    bed.node.objects.put("data", "k", bytes(64 * 65536))
    steps = Steps(bed.peers.fetch_into)
    monkeypatch.setattr(bed.peers, "fetch_into", steps)
    answer = asyncio.run(end_in_the_first_step(bed, monkeypatch, steps, how, "GET", "/v1/objects/data/k", b""))
    # Some chunks are read ahead.
    assert steps.num_taken <= 2 * bed.node.objects.config.max_in_flight_chunks
    assert not answer.complete if how == LEAVES else answer.status == 504


def test_what_waits_for_a_thread_is_not_begun_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    async def scenario(bed: TestBed) -> Answer:
        release = threading.Event()
        holding = asyncio.create_task(bed.node.pools.meta.run(release.wait, 10.0))
        await asyncio.sleep(0)
        try:
            return await ask(bed.app, "GET", "/v1/buckets", headers={"x-forebay-timeout-ms": "20"})
        finally:
            release.set()
            await holding
            await bed.node.pools.meta.run(lambda: None)

    with open_node(max_metadata_threads=1) as bed:
        monkeypatch.setattr(type(bed.node.catalog), "buckets", lambda *_: begun.append("buckets"))
        answer = asyncio.run(scenario(bed))
    assert (answer.status, answer.error, begun) == (504, "deadline-exceeded", [])


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHUNK), ("PUT", CHUNK), ("GET", "/v1/records/data/k"), ("GET", "/healthz")]
)
def test_nothing_is_begun_for_a_client_without_time(bed: TestBed, method: str, path: str) -> None:
    answer = call(bed.app, method, path, headers={"x-forebay-timeout-ms": "0"}, body=PAYLOAD if method == "PUT" else b"")
    assert (answer.status, answer.error) == (504, "deadline-exceeded")
    assert not bed.node.store.contains(REF.partition, REF.id)


def test_a_request_that_is_done_in_time_is_left_alone_and_the_next_is_looked_at(
    bed: TestBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    end = Exchange.end

    def spy(exchange: Exchange, reason: Any) -> None:
        ended.append(exchange.scope["path"])
        end(exchange, reason)

    async def scenario() -> list[int]:
        # Long enough for a busy machine; what is waited for is that it passes.
        quick = await ask(bed.app, "GET", "/healthz", headers={"x-forebay-timeout-ms": "500"})
        await asyncio.sleep(0.5 + 2 * LOOK_S)
        return [quick.status, (await ask(bed.app, "GET", WATCH, headers={"x-forebay-timeout-ms": "30"})).status]

    monkeypatch.setattr(Exchange, "end", spy)
    assert asyncio.run(scenario()) == [200, 504]
    assert ended == ["/v1/watch/data"]
    assert asyncio.run(scenario()) == [200, 504]  # In another event loop.


@pytest.mark.parametrize("value", ["-1", "1.5", "soon", "", "9" * 13, "٣".encode().decode("latin-1")])
def test_a_time_that_is_no_number_is_refused(bed: TestBed, value: str) -> None:
    answer = call(bed.app, "GET", "/healthz", headers={"x-forebay-timeout-ms": value})
    assert (answer.status, answer.error) == (400, "invalid-request")


def test_a_body_that_comes_too_slowly_is_stored_nowhere_and_gives_its_room_back(bed: TestBed) -> None:
    async def scenario() -> tuple[Answer, Answer]:
        headers = {"x-forebay-timeout-ms": "20"}
        late = await ask(
            bed.app, "PUT", f"{CHUNK}?tee=n2", body=PAYLOAD[:1000], announce=len(PAYLOAD), stall=True, headers=headers
        )
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10.0)
        stored = bed.node.store.contains(REF.partition, REF.id) or bed.peers.nodes["n2"]
        assert not stored
        return late, await ask(bed.app, "PUT", CHUNK, body=PAYLOAD)

    late, after = asyncio.run(scenario())
    assert (late.status, late.error, after.status) == (504, "deadline-exceeded", 200)


def test_other_nodes_are_told_how_much_time_is_left(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    sending = type(bed.peers).sending

    def spy(*args: Any, **options: Any) -> Any:
        told.append(options.get("deadline"))
        return sending(*args, **options)

    monkeypatch.setattr(type(bed.peers), "sending", spy)
    tees = f"{CHUNK}?tee={','.join(PEERS)}"
    assert call(bed.app, "PUT", tees, body=PAYLOAD, headers={"x-forebay-timeout-ms": "5000"}).status == 200
    assert call(bed.app, "PUT", tees, body=PAYLOAD).status == 200
    assert all(4.0 < deadline.remaining_s() <= 5.0 for deadline in told[:2])
    assert told[2:] == [None, None]


def test_a_body_that_has_come_is_stored_even_if_nobody_waits_for_it() -> None:
    async def scenario(bed: TestBed) -> None:
        leave, release = asyncio.Event(), threading.Event()
        holding = asyncio.create_task(bed.node.pools.tee.run(release.wait, 10.0))  # The copy waits for this thread.
        asking = asyncio.create_task(ask(bed.app, "PUT", f"{CHUNK}?tee=n2", body=PAYLOAD, leave=leave))
        while not bed.node.store.contains(REF.partition, REF.id):  # noqa: ASYNC110 - it happens in another thread
            await asyncio.sleep(0.001)
        leave.set()
        assert (await asking).status == 0
        release.set()
        await holding
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10.0)

    with open_node(max_tee_threads=1) as bed:
        asyncio.run(scenario(bed))
        assert bed.peers.nodes["n2"] == {(REF.partition, REF.id): PAYLOAD}


def test_reads_beyond_the_bound_are_refused_at_once() -> None:
    async def scenario(bed: TestBed) -> list[Answer]:
        taking = asyncio.Event()

        async def stuck(message: Any) -> None:
            if message["type"] == "http.response.body":
                taking.set()
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "GET", "path": CHUNK, "query_string": b"", "headers": []}
        answering: Any = bed.app(scope, asyncio.Event().wait, stuck)  # type: ignore[arg-type]
        reading = asyncio.create_task(answering)
        await taking.wait()
        refused = [await ask(bed.app, "GET", CHUNK), await ask(bed.app, "GET", "/v1/records/data/k?start=0")]
        reading.cancel()
        await asyncio.wait([reading])
        return [*refused, await ask(bed.app, "GET", CHUNK)]

    with open_node(max_reads=1) as bed:
        bed.node.store.put(REF.partition, REF.id, PAYLOAD)
        bed.node.catalog.create_bucket("data", BucketPolicy())
        content = Content(size=REF.size, digest=content_digest([REF.id]), refs=(REF,))
        bed.node.catalog.commit(Commit(bucket="data", key="k", record=ObjectRecord(write_id="w", content=content)))
        *refused, served = asyncio.run(scenario(bed))
    assert [(answer.status, answer.error, answer.headers["retry-after"]) for answer in refused] == [(503, "busy", "1")] * 2
    assert served.body == PAYLOAD


def test_documents_beyond_the_room_for_them_are_refused_at_once_and_hold_it_to_their_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def asked(bed: TestBed, body: bytes) -> Answer:
        # A task for each, as with a server.
        return await asyncio.create_task(ask(bed.app, "POST", "/v1/records:batchGet", body=body))

    async def scenario(bed: TestBed, steps: Steps) -> list[Answer]:
        full = asyncio.create_task(asked(bed, b"[]".ljust(bed.node.config.max_document_bytes)))
        assert await asyncio.to_thread(steps.begun.wait, 10.0)
        refused = await asked(bed, b"[]")
        steps.go_on.set()
        return [refused, await full, await asked(bed, b"[]")]

    with open_node(max_document_bytes=MAX_BATCH_BYTES) as bed:
        steps = Steps(type(bed.node.catalog).lookup_many)
        monkeypatch.setattr(type(bed.node.catalog), "lookup_many", lambda *args: steps(*args))
        refused, *served = asyncio.run(scenario(bed, steps))
    assert (refused.status, refused.error, refused.headers["retry-after"]) == (503, "busy", "1")
    assert [answer.status for answer in served] == [200, 200]


def test_requests_that_were_ended_are_counted(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(type(bed.node.store).verify)
    monkeypatch.setattr(type(bed.node.store), "verify", lambda *args: steps(*args))
    method, path, body, *_ = long_work("verify")
    asyncio.run(end_in_the_first_step(bed, monkeypatch, steps, LEAVES, method, path, body))
    shown = call(bed.app, "GET", "/metrics").body.decode()
    assert 'forebay_requests_total{method="POST",route="/v1/chunks:verify",status="499"} 1.0' in shown


def test_a_node_that_stops_ends_its_requests_without_an_answer(bed: TestBed) -> None:
    async def scenario() -> None:
        asking = asyncio.create_task(ask(bed.app, "GET", WATCH))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scenario())


def test_the_error_of_a_late_request_says_how_long_it_had(bed: TestBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(bed.node.catalog), "buckets", lambda *_: threading.Event().wait(0.3))
    answer = call(bed.app, "GET", "/v1/buckets", headers={"x-forebay-timeout-ms": "20"})
    assert "within the 0.02 s that the client had left" in answer.json()["detail"]
