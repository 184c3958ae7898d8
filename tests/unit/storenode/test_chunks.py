"""Chunks over HTTP: what the data plane sends, stores, forwards and refuses."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.checksum import segment_checks, xxh3
from client.errors import DiskFailed
from client.manifest import Ref, make_ref
from client.wire import CHECK_HEADER, SEGMENTS_HEADER, chunk_path
from storenode.admin import _rehash_some
from storenode.chunks import SIZE_HEADER
from storenode.chunkstore import ChunkStore
from tests.support.asgi import Answer, ask, call
from tests.support.nodes import OWN, PARTITIONS, PEERS, TestBed, open_node

PAYLOAD = bytes(range(256)) * 800  # Three segments and a part of a fourth.
REF = make_ref(PAYLOAD, partitions=PARTITIONS)
PATH = chunk_path(REF.partition, REF.hex)


@pytest.fixture
def bed() -> Iterator[TestBed]:
    with open_node() as opened:
        yield opened


@pytest.fixture
def stored(bed: TestBed) -> TestBed:
    bed.node.store.put(REF.partition, REF.id, PAYLOAD)
    return bed


def file_of(bed: TestBed, ref: Ref = REF) -> Path:
    (found,) = bed.root.glob(f"chunks/*/*{ref.hex}")
    return found


def has(bed: TestBed, ref: Ref = REF) -> bool:
    return bed.node.store.contains(ref.partition, ref.id)


# Out


def test_get_sends_the_chunk_with_its_checksum(stored: TestBed) -> None:
    answer = call(stored.app, "GET", PATH)
    assert (answer.status, answer.body, answer.complete) == (200, PAYLOAD, True)
    assert answer.headers[CHECK_HEADER] == f"{xxh3(PAYLOAD):016x}"
    assert answer.headers[SIZE_HEADER] == str(len(PAYLOAD))
    assert SEGMENTS_HEADER not in answer.headers


def test_get_hands_large_chunks_to_the_server_in_slices() -> None:
    payload = bytes(5 * 1024 * 1024 // 2)
    ref = make_ref(payload, partitions=PARTITIONS)
    with open_node(max_chunk_bytes=4 << 20, max_body_bytes=8 << 20) as bed:
        bed.node.store.put(ref.partition, ref.id, payload)
        answer = call(bed.app, "GET", chunk_path(ref.partition, ref.hex))
    assert [len(piece) for piece in answer.pieces] == [1 << 20, 1 << 20, 1 << 19, 0]


def test_head_sends_what_get_would_but_the_body(stored: TestBed) -> None:
    head, get = call(stored.app, "HEAD", PATH), call(stored.app, "GET", PATH)
    assert (head.headers, head.body, head.complete) == (get.headers, b"", True)


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-65535", 0, 65536),
        ("bytes=65536-196607", 65536, 196608),
        (f"bytes=131072-{len(PAYLOAD) - 1}", 131072, len(PAYLOAD)),
        ("bytes=131072-", 131072, len(PAYLOAD)),
        (f"bytes=0-{len(PAYLOAD) - 1}", 0, len(PAYLOAD)),
    ],
)
def test_ranges_of_segments_come_with_their_checksums(stored: TestBed, wanted: str, start: int, end: int) -> None:
    answer = call(stored.app, "GET", PATH, headers={"range": wanted})
    assert (answer.status, answer.body) == (206, PAYLOAD[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(PAYLOAD)}"
    told = [int(check, 16) for check in answer.headers[SEGMENTS_HEADER].split(",")]
    assert struct.pack(f"<{len(told)}Q", *told) == segment_checks(PAYLOAD[start:end])


@pytest.mark.parametrize(
    "wanted",
    ["bytes=1-65535", "bytes=0-65536", "bytes=999999-", "bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "bytes=-0"],
)
def test_ranges_that_can_not_be_checked_or_do_not_exist_are_refused(stored: TestBed, wanted: str) -> None:
    answer = call(stored.app, "GET", PATH, headers={"range": wanted})
    assert (answer.status, answer.error) == (416, "invalid-range")


def test_missing_chunk_is_not_found_and_not_repaired(bed: TestBed) -> None:
    answer = call(bed.app, "GET", PATH)
    assert (answer.status, answer.error) == (404, "chunk-not-found")
    # Nobody has said that it ought to be here.
    assert bed.repairs.asked == []


def test_chunk_cut_short_is_set_aside_and_repaired(stored: TestBed) -> None:
    file = file_of(stored)
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.truncate(1000)
    answer = call(stored.app, "GET", PATH)
    assert (answer.status, answer.error) == (503, "chunk-corrupt")
    assert not file.exists()
    assert len(list(stored.root.glob("quarantine/*"))) == 1
    assert stored.repairs.asked == [(REF.partition, REF.id)]


def test_flipped_bit_is_sent_with_the_checksum_that_tells_it(stored: TestBed) -> None:
    file = file_of(stored)
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.write(b"\xff")
    answer = call(stored.app, "GET", PATH)
    assert answer.status == 200
    assert answer.headers[CHECK_HEADER] != f"{xxh3(answer.body):016x}"


def test_client_that_takes_nothing_is_given_up() -> None:
    async def stuck(bed: TestBed) -> list[str]:
        sent: list[str] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "GET", "path": PATH, "query_string": b"", "headers": []}
        await bed.app(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        return sent

    with open_node(stall_timeout_s=0.05) as bed:
        bed.node.store.put(REF.partition, REF.id, PAYLOAD)
        assert asyncio.run(stuck(bed)) == ["http.response.start", "http.response.body"]


# In


def test_put_stores_the_chunk(bed: TestBed) -> None:
    answer = call(bed.app, "PUT", PATH, body=[PAYLOAD[:1000], b"", PAYLOAD[1000:]])
    assert (answer.status, answer.json()) == (200, {"durable": [OWN], "failed": {}})
    assert call(bed.app, "GET", PATH).body == PAYLOAD


def test_put_forwards_to_the_nodes_that_are_named(bed: TestBed) -> None:
    answer = call(bed.app, "PUT", f"{PATH}?tee={','.join((OWN, *PEERS))}", body=PAYLOAD)
    assert answer.json() == {"durable": [OWN, *PEERS], "failed": {}}
    assert [bed.peers.nodes[peer][REF.partition, REF.id] for peer in PEERS] == [PAYLOAD, PAYLOAD]
    assert bed.peers.nodes[OWN] == {}


def test_put_names_the_peers_that_failed_and_why(bed: TestBed) -> None:
    bed.peers.down.add("n3")
    answer = call(bed.app, "PUT", f"{PATH}?tee=n2,n3,stranger", body=PAYLOAD)
    assert answer.status == 200
    assert answer.json()["durable"] == [OWN, "n2"]
    assert set(answer.json()["failed"]) == {"n3", "stranger"}
    assert "n3 is down" in answer.json()["failed"]["n3"]


class _FailingStore:
    """A chunk store whose disk fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def put(self, *_: object, **__: object) -> bool:
        raise self._error


def with_failing_disk(bed: TestBed, error: Exception) -> None:
    object.__setattr__(bed.node, "store", _FailingStore(error))


def test_put_counts_the_peers_when_the_own_disk_fails(bed: TestBed) -> None:
    with_failing_disk(bed, DiskFailed("i/o error"))
    answer = call(bed.app, "PUT", f"{PATH}?tee=n2", body=PAYLOAD)
    assert answer.json() == {"durable": ["n2"], "failed": {OWN: "The disk reported an error: i/o error"}}


@pytest.mark.parametrize(
    ("error", "status", "code"), [(DiskFailed("x"), 503, "disk-failed"), (RuntimeError("x"), 500, "internal-error")]
)
def test_put_says_the_own_error_when_nobody_stored_it(bed: TestBed, error: Exception, status: int, code: str) -> None:
    with_failing_disk(bed, error)
    bed.peers.down.add("n2")
    answer = call(bed.app, "PUT", f"{PATH}?tee=n2", body=PAYLOAD)
    assert (answer.status, answer.error) == (status, code)


def test_full_disk_is_said_and_nothing_is_stored() -> None:
    with open_node(reserve_bytes=1 << 60) as bed:
        answer = call(bed.app, "PUT", PATH, body=PAYLOAD)
        assert (answer.status, answer.error) == (507, "disk-full")
        assert not has(bed)


def test_hanging_peer_is_cut_off_and_holds_its_room_until_it_ends() -> None:
    async def plain_bodies_have_room_for_one_more(bed: TestBed) -> None:
        gone, waiting = asyncio.Event(), asyncio.Event()
        stalled = asyncio.create_task(ask(bed.app, "PUT", PATH, announce=len(PAYLOAD), stall=True, gone=gone, waiting=waiting))
        await waiting.wait()
        assert (await ask(bed.app, "PUT", PATH, body=PAYLOAD)).error == "busy"
        gone.set()
        await stalled

    async def scenario(bed: TestBed) -> tuple[Answer, Answer, Answer]:
        bed.peers.hanging.add("n2")
        first = await ask(bed.app, "PUT", f"{PATH}?tee=n2,n3", body=PAYLOAD)
        refused = await ask(bed.app, "PUT", f"{PATH}?tee=n3", body=PAYLOAD)
        await plain_bodies_have_room_for_one_more(bed)
        bed.peers.released.set()
        # All that still runs here is the copy that came too late.
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        return first, refused, await ask(bed.app, "PUT", f"{PATH}?tee=n3", body=PAYLOAD)

    # Forwarded bodies may fill half of the room, which is one chunk here.
    with open_node(tee_timeout_s=0.1, max_body_bytes=512 * 1024) as bed:
        first, refused, after = asyncio.run(scenario(bed))
    assert first.json()["durable"] == [OWN, "n3"]
    assert "did not answer within 0.1 s" in first.json()["failed"]["n2"]
    assert (refused.status, refused.error, refused.headers["retry-after"]) == (503, "busy", "1")
    assert after.json()["durable"] == [OWN, "n3"]


def test_hanging_peer_does_not_take_the_threads_of_the_others() -> None:
    async def scenario(bed: TestBed) -> Answer:
        bed.peers.hanging.add("n2")
        for _ in range(2):
            await ask(bed.app, "PUT", f"{PATH}?tee=n2", body=PAYLOAD)
        try:
            return await ask(bed.app, "PUT", f"{PATH}?tee=n2,n3", body=PAYLOAD)
        finally:
            bed.peers.released.set()

    bounds: dict[str, Any] = {"max_tee_threads": 2, "max_tees_per_node": 1, "tee_timeout_s": 0.2, "max_body_bytes": 4 << 20}
    with open_node(**bounds) as bed:
        answer = asyncio.run(scenario(bed))
    assert answer.json()["durable"] == [OWN, "n3"]
    assert "answers slowly or not at all" in answer.json()["failed"]["n2"]


def test_wrong_checksum_is_refused_and_nothing_is_stored(bed: TestBed) -> None:
    answer = call(bed.app, "PUT", PATH, body=PAYLOAD[:-1] + b"x")
    assert (answer.status, answer.error) == (400, "checksum-mismatch")
    assert not has(bed)


@pytest.mark.parametrize("how", ["vanish", "stall", "end"])
def test_truncated_body_stores_nothing_and_gives_its_room_back(how: str) -> None:
    ways: dict[str, dict[str, Any]] = {"vanish": {"vanish": True}, "stall": {"stall": True}, "end": {}}
    with open_node(stall_timeout_s=0.05, max_body_bytes=512 * 1024) as bed:
        for _ in range(4):
            answer = call(bed.app, "PUT", PATH, body=PAYLOAD[:1000], announce=len(PAYLOAD), **ways[how])
            assert (answer.status, answer.error) == (400, "truncated-body")
        assert not has(bed)
        assert call(bed.app, "PUT", PATH, body=PAYLOAD).status == 200


def test_body_longer_than_announced_is_refused(bed: TestBed) -> None:
    answer = call(bed.app, "PUT", PATH, body=PAYLOAD + b"x", announce=len(PAYLOAD))
    assert (answer.status, answer.error) == (413, "body-too-large")
    assert not has(bed)


def test_too_large_a_chunk_is_refused_before_it_is_read(bed: TestBed) -> None:
    answer = call(bed.app, "PUT", PATH, announce=bed.node.config.max_chunk_bytes + 1, stall=True)
    assert (answer.status, answer.error) == (413, "body-too-large")
    assert "connection" not in answer.headers  # So little more is dropped, and the connection goes on.
    answer = call(bed.app, "PUT", PATH, announce=1 << 40, stall=True)
    assert (answer.status, answer.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(("announce", "status"), [(False, 411), (0, 400)])
def test_chunk_without_a_length_is_refused(bed: TestBed, announce: Any, status: int) -> None:
    answer = call(bed.app, "PUT", PATH, announce=announce)
    assert (answer.status, answer.error) == (status, "invalid-request")


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "", "٣"])
def test_length_that_is_no_number_is_refused(bed: TestBed, length: str) -> None:
    length = length.encode().decode("latin-1")
    answer = call(bed.app, "PUT", PATH, headers={"content-length": length}, announce=False)
    assert (answer.status, answer.error) == (400, "invalid-request")


def test_bodies_beyond_the_room_for_them_are_refused_at_once() -> None:
    async def scenario(bed: TestBed) -> list[Answer]:
        gone = asyncio.Event()
        waiting = [
            asyncio.create_task(ask(bed.app, "PUT", PATH, announce=len(PAYLOAD), stall=True, gone=gone)) for _ in range(3)
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        gone.set()
        return list(await asyncio.gather(*waiting))

    with open_node(max_body_bytes=512 * 1024) as bed:
        answers = asyncio.run(scenario(bed))
    assert sorted(answer.error for answer in answers) == ["busy", "truncated-body", "truncated-body"]


@pytest.mark.parametrize(
    "name",
    [
        "x/" + REF.hex,
        "-1/" + REF.hex,
        f"{PARTITIONS}/{REF.hex}",
        "99999999999/" + REF.hex,
        "1/" + REF.hex.upper().replace("0", "A"),
        "1/" + REF.hex[:-1],
        "1/" + REF.hex + "/x",
        "1/../" + REF.hex,
        "1/%2e%2e%2f" + REF.hex,
        "1/",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_names_that_are_no_chunk_of_this_cluster_are_refused(bed: TestBed, method: str, name: str) -> None:
    answer = call(bed.app, method, "/v1/chunks/" + name)
    assert (answer.status, answer.error) == (400, "invalid-request")


@pytest.mark.parametrize("tee", ["a/b", "n2,%00", ",".join(f"m{number}" for number in range(16)), "x" * 65])
def test_malformed_tee_is_refused(bed: TestBed, tee: str) -> None:
    answer = call(bed.app, "PUT", f"{PATH}?tee={tee}", body=PAYLOAD)
    assert (answer.status, answer.error) == (400, "invalid-request")
    assert not has(bed)


def test_other_methods_name_those_that_exist(bed: TestBed) -> None:
    answer = call(bed.app, "DELETE", PATH)
    assert (answer.status, answer.error, answer.headers["allow"]) == (405, "invalid-request", "GET, HEAD, PUT")


# Asking about copies


def names(*refs: Ref) -> bytes:
    return b'{"chunks": [%s]}' % ",".join(f'[{ref.partition}, "{ref.hex}"]' for ref in refs).encode()


def test_have_tells_which_files_are_there(stored: TestBed) -> None:
    other = make_ref(b"other", partitions=PARTITIONS)
    answer = call(stored.app, "POST", "/v1/chunks:have", body=names(REF, other))
    assert (answer.status, answer.json()) == (200, {"have": [True, False]})


def test_verify_rehashes_and_repairs(stored: TestBed) -> None:
    bad = make_ref(b"bad" * 100, partitions=PARTITIONS)
    stored.node.store.put(bad.partition, bad.id, b"bad" * 100)
    file = file_of(stored, bad)
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.write(b"X")
    missing = make_ref(b"missing", partitions=PARTITIONS)
    answer = call(stored.app, "POST", "/v1/chunks:verify", body=names(REF, bad, missing))
    assert (answer.status, answer.json()) == (200, {"status": ["ok", "corrupt", "missing"]})
    assert stored.repairs.asked == [(bad.partition, bad.id)]
    assert not file.exists()


@pytest.mark.parametrize(("most_bytes", "num_calls"), [(1024 * 1024, 1), (1, 3)])
def test_small_copies_are_rehashed_many_to_a_call(
    stored: TestBed, monkeypatch: pytest.MonkeyPatch, most_bytes: int, num_calls: int
) -> None:
    calls = []

    def rehash_some(store: ChunkStore, found: list[tuple[int, bytes]]) -> list[str]:
        calls.append(len(found))
        return _rehash_some(store, found)

    monkeypatch.setattr("storenode.admin._rehash_some", rehash_some)
    monkeypatch.setattr("storenode.admin._REHASHED_BYTES", most_bytes)
    answer = call(stored.app, "POST", "/v1/chunks:verify", body=names(REF, REF, REF))
    assert answer.json() == {"status": ["ok"] * 3}
    assert len(calls) == num_calls


@pytest.mark.parametrize("path", ["/v1/chunks:have", "/v1/chunks:verify"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"chunks": 1}',
        b'{"chunks": [1]}',
        b'{"chunks": [["1", "%s"]]}' % REF.hex.encode(),
        b'{"chunks": [[true, "%s"]]}' % REF.hex.encode(),
        b'{"chunks": [[64, "%s"]]}' % REF.hex.encode(),
        b'{"chunks": [[1, "../x"]]}',
        b"[" * 20_000,
        b"\xff",
        names(*[REF] * 1025),
    ],
)
def test_malformed_questions_are_refused(bed: TestBed, path: str, body: bytes) -> None:
    answer = call(bed.app, "POST", path, body=body)
    assert (answer.status, answer.error) == (400, "invalid-request")


def test_a_question_may_not_be_endless(bed: TestBed) -> None:
    answer = call(bed.app, "POST", "/v1/chunks:have", body=[b" " * 65536] * 5, announce=False)
    assert (answer.status, answer.error) == (413, "body-too-large")
    answer = call(bed.app, "POST", "/v1/chunks:have", announce=1 << 30, stall=True)
    assert (answer.status, answer.error) == (413, "body-too-large")
