"""The door for processes on a node's host: what it passes, to whom, and that nobody who knocks harms the others."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from client.checksum import SEGMENT_BYTES, Announced, segment_checks
from client.errors import ProtocolMismatch
from client.local_wire import LOCAL_PROTOCOL, MAX_HEAD_BYTES, MAX_REQUEST_BYTES, MAX_TOGETHER, ChunkAnswer, ChunkRequest
from client.manifest import Ref, make_ref
from tests.support.cluster import eventually
from tests.support.door import CLUSTER_ID, Door, connected, open_door
from tests.support.fake_cluster import Clock

PAYLOAD = random.Random(3).randbytes(3 * SEGMENT_BYTES + 100)
REF = make_ref(PAYLOAD, partitions=64)
ID = struct.pack("<I32s", REF.partition, REF.id)
FIELDS = struct.pack("<HHII", LOCAL_PROTOCOL, 1, 0, 0) + ID


class Got(NamedTuple):
    """An answer and the bytes behind its descriptor."""

    answer: ChunkAnswer
    payload: bytes | None

    @property
    def error(self) -> str:
        assert self.answer.problem is not None and self.payload is None
        return str(self.answer.problem["type"]).rpartition(":")[2]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        yield door


def request(*refs: Ref, first: int = 0, last: int = 0, token: str = "") -> bytes:
    chunks = [(ref.partition, ref.id) for ref in refs or (REF,)]
    return ChunkRequest(chunks=chunks, first=first, last=last, token=token).encode()


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    message, fds, _, _ = socket.recv_fds(connection, MAX_HEAD_BYTES, MAX_TOGETHER)
    return message, fds


def ask(connection: socket.socket, message: bytes) -> Got:
    connection.send(message)
    answer, fds = receive(connection)
    payload = os.pread(fds[0], REF.size, 0) if fds else None
    for fd in fds:
        os.close(fd)
    return Got(ChunkAnswer.decode(answer), payload)


def is_served(door: Door) -> bool:
    with connected(door.path) as connection:
        return ask(connection, request()).payload == PAYLOAD


def is_admitted(door: Door) -> bool:
    try:
        return is_served(door)
    except (OSError, ProtocolMismatch):
        return False


def test_a_chunk_is_passed_with_who_passes_it(door: Door) -> None:
    with connected(door.path) as connection:
        got = ask(connection, request(token="secret"))
    assert got == (ChunkAnswer(node_id="node-0", cluster_id=CLUSTER_ID), PAYLOAD)


def test_the_checks_of_the_segments_that_are_asked_for_come_along(door: Door) -> None:
    with connected(door.path) as connection:
        for first, last in ((1, 3), (3, 4), (0, 4)):
            announced = ask(connection, request(first=first, last=last)).answer.announced
            checks = segment_checks(PAYLOAD)[8 * first : 8 * last]
            assert announced == Announced(check=REF.check, segment_checks=checks)


def test_who_asks_for_nothing_learns_who_answers(door: Door) -> None:
    with connected(door.path) as connection:
        message = ChunkRequest(chunks=[], token="").encode()
        assert ask(connection, message) == (ChunkAnswer(node_id="node-0", cluster_id=CLUSTER_ID), None)


def test_many_chunks_come_with_one_answer_without_those_that_are_not_here(tmp_path: Path) -> None:
    payloads = [random.Random(number).randbytes(100 + number) for number in range(MAX_TOGETHER)]
    refs = [make_ref(payload, partitions=64) for payload in payloads]
    gone = (0, 7, MAX_TOGETHER - 1)
    here = [number for number in range(MAX_TOGETHER) if number not in gone]
    with (
        open_door(tmp_path, *((refs[number], payloads[number]) for number in here)) as door,
        connected(door.path) as connection,
    ):
        connection.send(request(*refs))
        message, fds = receive(connection)
        answer = ChunkAnswer.decode(message)
        assert answer.missing == gone
        assert answer.problem is not None and refs[0].hex in answer.problem["detail"]
        assigned = answer.assign(fds, count=len(refs))
        found = {number: os.pread(fd, refs[number].size, 0) for number, fd in enumerate(assigned) if fd is not None}
        assert found == {number: payloads[number] for number in here}
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    ("missing", "has_problem", "num_fds"),
    [
        ((), False, 2),
        ((), False, 4),
        ((1,), False, 2),
        ((1,), True, 3),
        ((1, 1), True, 2),
        ((1, 1), True, 1),
        ((3,), True, 3),
        ((-1,), True, 2),
        ((0, 1, 2, 3), True, 1),
    ],
)
def test_descriptors_that_do_not_fit_the_answer_are_not_used(missing: tuple[int, ...], has_problem: bool, num_fds: int) -> None:
    problem = {"type": "urn:forebay:error:chunk-not-found"} if has_problem else None
    answer = ChunkAnswer(node_id="node-0", cluster_id=CLUSTER_ID, missing=missing, problem=problem)
    with pytest.raises(ProtocolMismatch):
        answer.assign(range(num_fds), count=3)


def test_nobody_can_write_through_a_descriptor(door: Door) -> None:
    with connected(door.path) as connection:
        connection.send(request())
        _, (fd,) = receive(connection)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        os.close(fd)


def test_a_chunk_that_is_not_here_is_a_problem_and_the_connection_goes_on(door: Door) -> None:
    with connected(door.path) as connection:
        assert ask(connection, request(make_ref(b"other", partitions=64))).error == "chunk-not-found"
        assert ask(connection, request()).payload == PAYLOAD
    assert door.repairs == []


def test_a_copy_that_is_found_damaged_is_not_passed_and_is_repaired(door: Door) -> None:
    os.truncate(door.chunk_file(REF), REF.size + 5)
    with connected(door.path) as connection:
        assert ask(connection, request(first=0, last=1)).error == "chunk-corrupt"
    assert door.repairs == [(REF.partition, REF.id)]


@pytest.mark.parametrize("remove", ["delete", "quarantine"])
def test_what_was_passed_stays_readable(door: Door, remove: str) -> None:
    with connected(door.path) as connection:
        connection.send(request())
        _, (fd,) = receive(connection)
    if remove == "quarantine":
        with door.chunk_file(REF).open("r+b") as file:
            file.seek(REF.size)  # in the trailer
            file.write(b"damage")
    assert getattr(door.store, remove)(REF.partition, REF.id)
    assert os.pread(fd, REF.size, 0) == PAYLOAD
    os.close(fd)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"x", "protocol-mismatch"),
        (b"\xff" * len(FIELDS), "protocol-mismatch"),
        (b"\x01" + FIELDS[1:], "protocol-mismatch"),
        (FIELDS[:-1], "invalid-request"),
        (FIELDS[:6], "invalid-request"),
        (struct.pack("<HHII", LOCAL_PROTOCOL, 2, 0, 1) + 2 * ID, "invalid-request"),
        (struct.pack("<HHII", LOCAL_PROTOCOL, 0, 0, 1), "invalid-request"),
        (struct.pack("<HHII", LOCAL_PROTOCOL, MAX_TOGETHER + 1, 0, 0) + (MAX_TOGETHER + 1) * ID, "invalid-request"),
        (struct.pack("<HHII", LOCAL_PROTOCOL, 3, 0, 0) + 2 * ID, "invalid-request"),
        (FIELDS + b"\xff", "invalid-request"),
        (request(first=0, last=5), "invalid-range"),
        (request(first=3, last=2), "invalid-range"),
        (request(first=2**32 - 1, last=2**32 - 1), "invalid-range"),
        (struct.pack("<HHIII32s", LOCAL_PROTOCOL, 1, 0, 0, 2**32 - 1, REF.id), "chunk-not-found"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_problem(door: Door, message: bytes, error: str) -> None:
    with connected(door.path) as connection:
        assert ask(connection, message).error == error
        assert ask(connection, request()).payload == PAYLOAD


def test_random_bytes_harm_nobody(door: Door) -> None:
    draw = random.Random(4)
    with connected(door.path) as connection:
        for _ in range(300):
            message = FIELDS[: draw.randrange(1, 10)] + draw.randbytes(draw.randrange(MAX_REQUEST_BYTES - 10))
            assert ask(connection, message).payload is None
    assert is_served(door)


def test_a_request_longer_than_any_costs_the_connection(door: Door) -> None:
    with connected(door.path) as connection:
        connection.send(FIELDS + b"t" * (MAX_REQUEST_BYTES + 1 - len(FIELDS)))
        assert connection.recv(1) == b""
    assert is_served(door)


def test_descriptors_that_are_sent_to_the_node_are_not_kept(door: Door) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with connected(door.path) as connection, open(os.devnull) as null:
        for _ in range(10):
            socket.send_fds(connection, [request()], [null.fileno()] * 3)
            message, fds = receive(connection)
            for fd in fds:
                os.close(fd)
            assert ChunkAnswer.decode(message).problem is None
        assert len(os.listdir("/proc/self/fd")) < before + 10, "30 came"


def test_who_does_not_take_the_answers_loses_the_connection(door: Door) -> None:
    with connected(door.path) as connection:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                connection.send(request(first=0, last=4))
        assert is_served(door)


def test_there_are_so_many_connections_and_no_more(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD), max_connections=2) as door:
        with connected(door.path) as first, connected(door.path) as second:
            assert ask(first, request()).payload == ask(second, request()).payload == PAYLOAD
            with connected(door.path) as third:
                assert third.recv(1) == b""
            assert ask(first, request()).payload == PAYLOAD
        eventually(lambda: is_admitted(door), what="there is room again")


def test_a_connection_that_is_silent_for_long_is_closed(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD), idle_s=0.05) as door, connected(door.path) as connection:
        assert ask(connection, request()).payload == PAYLOAD
        assert connection.recv(1) == b""


def test_a_connection_in_use_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    with (
        open_door(tmp_path, (REF, PAYLOAD), idle_s=60.0, clock=clock) as door,
        connected(door.path) as used,
        connected(door.path) as unused,
    ):
        assert ask(unused, request()).payload == PAYLOAD
        for _ in range(3):
            clock.sleep(40.0)
            assert ask(used, request()).payload == PAYLOAD
        assert unused.recv(1) == b""
        assert ask(used, request()).payload == PAYLOAD


def test_the_socket_is_for_owner_and_group_and_goes_with_the_node(tmp_path: Path) -> None:
    with open_door(tmp_path, (REF, PAYLOAD)) as door, connected(door.path) as idle:
        mode = os.stat(door.path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
        assert ask(idle, request()).payload == PAYLOAD
    assert not os.path.exists(door.path)


def test_what_a_killed_node_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(tmp_path / "chunks.sock"))
    with open_door(tmp_path, (REF, PAYLOAD)) as door:
        assert is_served(door)


def test_a_data_directory_may_lie_deeper_than_an_address_reaches(tmp_path: Path) -> None:
    root = tmp_path / ("d" * 200)
    root.mkdir()
    with open_door(root, (REF, PAYLOAD)) as door:
        assert len(door.path) > 107 and is_served(door)


def test_without_a_socket_the_node_runs_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "chunks.sock").mkdir()
    with open_door(tmp_path, (REF, PAYLOAD)):
        assert "will read over HTTP" in caplog.text
