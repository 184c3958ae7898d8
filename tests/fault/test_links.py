"""The links of the soak lose what they are told to lose, for whom they are told, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.soak.links import Network, Rule
from tests.support.cluster import eventually
from tests.support.socket_server import Connection, SocketServer, answer, serving

WAIT_S = 20.0
SILENCE_S = 0.5
REQUEST = b"GET /x HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


@dataclass(kw_only=True)
class Bed:
    network: Network
    port: int
    asked: list[str]
    pids: dict[str, int]


@pytest.fixture
def bed() -> Iterator[Bed]:
    """A link for a process called here to a server called there."""
    asked: list[str] = []
    pids = {"here": os.getpid()}

    def serve(connection: Connection) -> None:
        while request := connection.request():
            asked.append(request.path)
            connection.send(answer(200, b"ok"))

    with ExitStack() as stack:
        server: SocketServer = stack.enter_context(serving(serve))
        network = stack.enter_context(Network(lambda: pids, outside="outside"))
        port = network.link("there", int(server.url.rpartition(":")[2]))
        yield Bed(network=network, port=port, asked=asked, pids=pids)


def ask(connection: socket.socket, *, wait_s: float = WAIT_S) -> str:
    """What comes back of a request within so long: the answer, silence or the end."""
    connection.settimeout(wait_s)
    try:
        connection.sendall(REQUEST)
        return "answer" if connection.recv(65536) else "end"
    except TimeoutError:
        return "silence"
    except OSError:
        return "end"


def connect(bed: Bed) -> socket.socket:
    return socket.create_connection(("127.0.0.1", bed.port), timeout=WAIT_S)


@pytest.mark.parametrize(
    ("rule", "outcome", "arrives"),
    [
        ("refuse", "end", False),
        ("silence", "silence", False),
        ("no-requests", "silence", False),
        ("no-replies", "silence", True),
    ],
)
def test_a_rule_holds_for_old_and_new_connections_until_it_is_lifted(bed: Bed, rule: Rule, outcome: str, arrives: bool) -> None:
    with connect(bed) as old:
        assert ask(old) == "answer"
        bed.asked.clear()
        bed.network.cut("here", "there", rule)
        with connect(bed) as new:
            wait_s = SILENCE_S if outcome == "silence" else WAIT_S
            assert (ask(old, wait_s=wait_s), ask(new, wait_s=wait_s)) == (outcome, outcome)
            if arrives:
                eventually(lambda: len(bed.asked) == 2, what="both requests arrive")
            assert bool(bed.asked) == arrives
            bed.network.heal("here", "there")
            # A connection that lost something passes nothing any more.
            assert (ask(old), ask(new)) == ("end", "end")
    with connect(bed) as again:
        assert ask(again) == "answer"


def test_a_rule_for_somebody_else_does_not_matter(bed: Bed) -> None:
    bed.network.cut("outside", "there", "refuse")
    bed.network.cut("there", "here", "silence")
    with connect(bed) as connection:
        assert ask(connection) == "answer"


def test_who_was_not_known_is_looked_up_again_once_all_connections_have_ended(bed: Bed) -> None:
    bed.pids.clear()
    with connect(bed) as early:
        assert ask(early) == "answer"
        bed.pids["here"] = os.getpid()
        bed.network.cut("here", "there", "refuse")
        assert ask(early) == "answer"
        bed.network.abort_all()
        assert ask(early) == "end"
    with connect(bed) as late:
        assert ask(late) == "end"


def test_every_third_answer_is_lost_after_the_request_was_carried_out(bed: Bed) -> None:
    bed.network.cut("here", "there", "lose-replies")
    outcomes = []
    for _ in range(6):
        with connect(bed) as connection:
            outcomes.append(ask(connection))
    assert outcomes == ["answer", "answer", "end"] * 2
    assert len(bed.asked) == 6


def test_a_link_to_nobody_ends_its_connections(bed: Bed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    link = bed.network.link("nobody", port, source="here")
    with socket.create_connection(("127.0.0.1", link), timeout=WAIT_S) as connection:
        eventually(lambda: ask(connection) == "end", what="the connection ends")
