"""Clients that stop in the middle, on real sockets: who leaves ends what is done for it, and who stays holds no memory."""

from __future__ import annotations

import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from client.client import Client
from client.manifest import Ref, make_ref
from client.wire import BATCH_GET_PATH, chunk_path, encode_json, record_path
from tests.support.cluster import LiveCluster, eventually

pytestmark = pytest.mark.slow
MIB = 1024 * 1024
LARGE = random.Random(3).randbytes(24 * MIB)  # One chunk, and more than the system takes from a node for a client.
SMALL = random.Random(4).randbytes(64 * 1024)
NUM_READERS = 6
STALL_S = 1.5


@contextmanager
def nodes(directory: Path, monkeypatch: pytest.MonkeyPatch, *, count: int = 1, **settings: str) -> Iterator[LiveCluster]:
    monkeypatch.setenv("FOREBAY_CHUNK_SIZE_BYTES", str(len(LARGE)))
    monkeypatch.setenv("FOREBAY_COLOCATED", "false")
    # A node that reads from itself keeps no connections for that, which would be counted with the others.
    environment = {"FOREBAY_CHUNK_SIZE_BYTES": str(len(LARGE)), "FOREBAY_MAX_IDLE_CONNECTIONS": "0", **settings}
    with LiveCluster(directory, nodes=count, environment=environment) as cluster, cluster.client() as client:
        client.buckets.create("data", replicas=count, ack="all")
        client.put("data", "large", LARGE)
        client.put("data", "small", SMALL)
        yield cluster


class Reader:
    """A client on a socket that takes as little as possible before it is asked to."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(30.0)
        self.sock.connect((url.hostname, url.port))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, method: str, path: str, *, body: bytes = b"", announce: int | None = None, headers: str = "") -> None:
        size = len(body) if announce is None else announce
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n{headers}\r\n".encode() + body)

    def rest(self) -> bytes:
        """All that comes until the node closes the connection, however it does that."""
        taken = bytearray()
        with suppress(ConnectionResetError):
            while data := self.sock.recv(65536):
                taken += data
        return bytes(taken)


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no page of a file."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def mapped_chunks(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/chunks/")


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process refer to."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(fd))
    return found


def num_sockets(pid: int) -> int:
    return sum(target.startswith("socket:") for target in open_files(pid))


def num_half_written(pid: int) -> int:
    """Chunks that have no name yet."""
    return sum("/chunks/" in target and target.endswith("(deleted)") for target in open_files(pid))


def ref_of(client: Client, key: str) -> Ref:
    return client.stat("data", key).record.content.refs[0]


def requests(client: Client) -> dict[str, tuple[str, str, bytes]]:
    """Of each way to read: method, path and body of a request whose answer does not fit into the buffers of a socket."""
    ref = ref_of(client, "large")
    items = encode_json({"items": [["data", "small"]] * 1024})
    return {
        "chunk": ("GET", chunk_path(ref.partition, ref.hex), b""),
        "record with bytes": ("GET", record_path("data", "large") + "?start=0", b""),
        "batch": ("POST", BATCH_GET_PATH, items),
        "object": ("GET", "/v1/objects/data/large", b""),
    }


@pytest.mark.parametrize(
    ("way", "held_bytes"),
    # A batch is made slice by slice. What is sent as an object was checked before, so it lies in memory, a chunk for each.
    [("chunk", 0), ("record with bytes", 0), ("batch", 8 * MIB), ("object", len(LARGE))],
)
def test_readers_that_take_nothing_hold_no_more_than_is_allowed_and_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, held_bytes: int
) -> None:
    with nodes(tmp_path, monkeypatch, FOREBAY_STALL_TIMEOUT_S=str(STALL_S)) as cluster, cluster.client() as client:
        (node_id,) = cluster.node_ids
        pid = cluster.pid(node_id)
        method, path, body = requests(client)[way]
        with Reader(cluster.endpoint(node_id)) as first:  # Whatever is loaded at the first use does not count.
            first.send(method, path, body=body)
        eventually(lambda: mapped_chunks(pid) == 0, what="the first reader's map is gone")
        before, sockets = anonymous_bytes(pid), num_sockets(pid)
        with ExitStack() as stack:
            readers = [stack.enter_context(Reader(cluster.endpoint(node_id))) for _ in range(NUM_READERS)]
            for reader in readers:
                reader.send(method, path, body=body)
            for reader in readers:
                assert reader.sock.recv(1)  # Its answer has begun.
            assert anonymous_bytes(pid) - before < NUM_READERS * held_bytes + 32 * MIB
            assert client.get("data", "large") == LARGE  # Others are served meanwhile.
            assert client.get_many([("data", "small", 0, None)] * 2) == [SMALL] * 2
            eventually(lambda: num_sockets(pid) <= sockets, what="all are cut off", deadline_s=10 * STALL_S)
            eventually(lambda: mapped_chunks(pid) == 0, what="no file is mapped any more")
            assert all(len(reader.rest()) < len(LARGE) for reader in readers)


def test_a_reader_of_small_answers_that_takes_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(tmp_path, monkeypatch, FOREBAY_STALL_TIMEOUT_S=str(STALL_S)) as cluster:
        (node_id,) = cluster.node_ids
        pid = cluster.pid(node_id)
        sockets = num_sockets(pid)
        before = anonymous_bytes(pid)
        with Reader(cluster.endpoint(node_id)) as reader:
            for _ in range(500):  # 32 MB, were they all answered
                reader.send("GET", record_path("data", "small") + "?start=0")
            eventually(lambda: num_sockets(pid) <= sockets, what="it is cut off", deadline_s=10 * STALL_S)
        assert anonymous_bytes(pid) - before < 8 * MIB


@pytest.mark.parametrize(
    ("way", "route"),
    [
        ("chunk", "/v1/chunks/{partition}/{id}"),
        ("record with bytes", "/v1/records/{bucket}/{key:path}"),
        ("batch", BATCH_GET_PATH),
        ("object", "/v1/objects/{bucket}/{key}"),
    ],
)
def test_a_reader_that_leaves_ends_what_is_done_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, route: str
) -> None:
    with nodes(tmp_path, monkeypatch) as cluster, cluster.client() as client:
        (node_id,) = cluster.node_ids
        pid = cluster.pid(node_id)
        method, path, body = requests(client)[way]
        answered = f'requests_total{{method="{method}",route="{route}"'
        before = counted(cluster, answered)
        with Reader(cluster.endpoint(node_id)) as reader:
            reader.send(method, path, body=body)
            assert reader.sock.recv(100)
        # No silence was waited for; that would take a minute.
        eventually(lambda: mapped_chunks(pid) == 0, what="no file is mapped any more")
        eventually(lambda: counted(cluster, answered) > before, what="its request is over")
        # Of a map the rest costs nothing once nobody takes it; a batch would go on reading.
        assert way != "batch" or counted(cluster, f'sent_bytes_total{{route="{route}"') < 1024 * len(SMALL) / 2


def counted(cluster: LiveCluster, what: str) -> float:
    """The sum of a node's counters whose names begin so."""
    transport = cluster.transport()
    try:
        shown = transport.request("GET", cluster.endpoints[0], "/metrics").body.decode()
    finally:
        transport.close()
    return sum(float(line.rpartition(" ")[2]) for line in shown.splitlines() if line.startswith(f"forebay_{what}"))


def test_a_chunk_whose_sender_leaves_is_stored_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(tmp_path, monkeypatch, count=2) as cluster:
        first, second = cluster.node_ids
        payload = random.Random(5).randbytes(8 * MIB)
        ref = make_ref(payload, partitions=cluster.ask(first, "GET", "/v1/layout")["layouts"][0]["partitions"])
        path = f"{chunk_path(ref.partition, ref.hex)}?tee={second}"
        with Reader(cluster.endpoint(first)) as sender:
            sender.send("PUT", path, body=payload[: 5 * MIB], announce=len(payload), headers="x-forebay-epoch: 0\r\n")
            eventually(lambda: num_half_written(cluster.pid(second)), what="the other node is writing, too")
        eventually(lambda: not num_half_written(cluster.pid(first)), what="the node has given up")
        eventually(lambda: not num_half_written(cluster.pid(second)), what="the other node has given up")
        assert cluster.sound_copies(ref) == set()
        with Reader(cluster.endpoint(first)) as sender:  # The room for the body is there again.
            sender.send("PUT", path, body=payload, headers="x-forebay-epoch: 0\r\n")
            assert sender.sock.recv(100).startswith(b"HTTP/1.1 200")
        eventually(lambda: cluster.sound_copies(ref) == {first, second}, what="two right copies")


def test_idle_connections_make_room_and_without_them_one_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes(tmp_path, monkeypatch, FOREBAY_MAX_CONNECTIONS="8") as cluster, ExitStack() as stack:
        (endpoint,) = cluster.endpoints
        idle = [stack.enter_context(Reader(endpoint)) for _ in range(12)]
        assert idle[0].rest() == b""
        with cluster.client() as client:
            assert client.get("data", "small") == SMALL
            revision = client.list("data").revision
        for _ in range(8):
            watcher = stack.enter_context(Reader(endpoint))
            watcher.send("GET", f"/v1/watch/data?after={revision}&timeout_s=30")
        eventually(lambda: refused(endpoint), what="one more is refused")


def refused(endpoint: str) -> bool:
    with Reader(endpoint) as reader:
        reader.send("GET", "/healthz", headers="connection: close\r\n")
        answer = reader.rest()
    return answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1\r\n" in answer and b'"urn:forebay:error:busy"' in answer


def test_a_request_ends_with_the_time_of_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(tmp_path, monkeypatch) as cluster, cluster.client() as client:
        revision = client.list("data").revision
        with Reader(cluster.endpoints[0]) as watcher:
            began_s = time.monotonic()
            watcher.send("GET", f"/v1/watch/data?after={revision}&timeout_s=30", headers="x-forebay-timeout-ms: 200\r\n")
            assert watcher.sock.recv(100).startswith(b"HTTP/1.1 504")
        assert 0.2 <= time.monotonic() - began_s < 5.0


def test_a_node_takes_all_the_descriptors_that_it_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, given), most))
    try:
        with nodes(tmp_path, monkeypatch) as cluster:
            assert resource.prlimit(cluster.pid(cluster.node_ids[0]), resource.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (given, most))
