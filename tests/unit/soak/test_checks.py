"""The checks of the soak find each promise that is broken; a history without one passes."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from client.catalog import Listing
from client.client import Client
from client.errors import DiskFull, EndpointUnreachable, InternalError, NotEnoughReplicas, PreconditionFailed
from client.record import Condition, ObjectInfo
from tests.soak.checks import check_chunks_left, check_contended, check_garbage
from tests.soak.disks import Disk
from tests.soak.history import History, Seen, now
from tests.soak.ledger import Entry, Ledger, Lister
from tests.soak.values import value
from tests.support.catalogs import record

ANY, NEW = Condition(), Condition(if_none_match="*")


def seen(tag: str, version: int) -> Seen:
    return Seen(tag=tag, etag=f"e-{tag}", version=version)


def held(ledger: Ledger, key: str, version: int) -> Entry:
    entry = Entry(key=key, size_bytes=1000)
    ledger.ask(entry)
    ledger.hold(entry, info(key, version))
    return entry


def info(key: str, version: int) -> ObjectInfo:
    return ObjectInfo(bucket="soak", key=key, version=version, record=record())


class FakeLists:
    """Gives pages."""

    def __init__(self, *pages: tuple[list[ObjectInfo], int]) -> None:
        self.pages = pages

    def list(self, bucket: str, *, prefix: str, cursor: str | None, limit: int) -> Listing:
        number = int(cursor or 0)
        objects, revision = self.pages[number]
        following = str(number + 1) if number + 1 < len(self.pages) else None
        return Listing(objects=tuple(objects), prefixes=(), cursor=following, revision=revision)


def listed(ledger: Ledger, *pages: tuple[list[ObjectInfo], int]) -> list[str]:
    client: Any = FakeLists(*pages)
    Lister(lambda: cast(Client, client), ledger, name="l", rng=random.Random(1)).step()
    return ledger.history.violations


def test_a_history_that_can_have_happened_passes() -> None:
    history = History()
    history.wrote("a", "put", "k", 1, seen("x", 5), ANY)
    history.read("b", "k", 2, seen("x", 5))
    history.not_written("c", "put", "k", 3, "y", NEW, PreconditionFailed("it is there"))
    history.not_written("c", "put", "k", 3, "z", ANY, EndpointUnreachable("silence"))
    history.read_tag("b", "k", 4, "z")
    history.wrote("b", "delete", "k", 5, None, ANY)
    check_contended(history)
    assert history.violations == []


def test_a_stale_read_is_found() -> None:
    history = History()
    history.wrote("a", "put", "k", 1, seen("x", 5), ANY)
    history.wrote("a", "put", "k", now(), seen("y", 6), ANY)
    history.read("b", "k", now(), seen("x", 5))
    check_contended(history)
    assert "k: no order of these" in history.violations[0]


@pytest.mark.parametrize("error", [NotEnoughReplicas("2 of 3"), DiskFull("no room")])
def test_a_write_that_was_promised_not_to_happen_and_did_is_found(error: Exception) -> None:
    history = History()
    history.not_written("a", "put", "k", 1, "x", ANY, error)
    history.read_tag("b", "k", 2, "x")
    check_contended(history)
    assert "found x" in history.violations[0]


def test_an_outdated_read_of_what_never_was_is_found() -> None:
    history = History()
    history.wrote("a", "put", "k", 1, seen("x", 5), ANY)
    history.not_written("a", "put", "k", 2, "y", NEW, PreconditionFailed("it is there"))
    history.read_weakly("k", "x", what="eventual stat")
    history.read_weakly("k", "y", what="eventual stat")
    check_contended(history)
    assert history.violations == ["k: somebody saw y, which was never written"]


def test_versions_that_go_back_are_found() -> None:
    history = History()
    history.versions += [("k", 1, 2, 7), ("k", 3, 4, 6)]
    check_contended(history)
    assert history.violations == ["k: version 6 was written after version 7 had been acknowledged"]


def test_one_etag_for_two_writes_is_found() -> None:
    history = History()
    history.read("a", "k", 1, seen("x", 1))
    history.read("a", "k", 1, Seen(tag="y", etag="e-x", version=2))
    assert "stood for the write x, and for y" in history.violations[0]


def test_a_defect_is_a_violation_and_an_outage_is_counted() -> None:
    history = History()
    history.failed("get", EndpointUnreachable("nobody"))
    assert not history.broken.is_set()
    history.failed("get", InternalError("a bug"))
    history.failed("get", KeyError("a bug"))
    assert len(history.violations) == 2
    assert history.counts["get endpoint-unreachable"] == 1


def test_chunks_that_nothing_refers_to_are_found(tmp_path: Path) -> None:
    disk = Disk(root=tmp_path, own=False)
    wanted, name = set[tuple[str, int, bytes]](), "00000005-" + "ab" * 32
    cluster: Any = SimpleNamespace(nodes=[SimpleNamespace(name="n0", node_id="id0", disk=disk)])
    operator: Any = SimpleNamespace(wanted=lambda: wanted)
    (tmp_path / "chunks" / "ab").mkdir(parents=True)
    (tmp_path / "chunks" / "ab" / name).touch()
    wanted.add(("id0", 5, bytes.fromhex("ab" * 32)))
    history = History()
    check_garbage(cluster, operator, history)
    assert history.violations == []
    wanted.clear()
    check_garbage(cluster, operator, history)
    assert "n0 still has 1 chunks that nothing refers to" in history.violations[0]


def test_a_chunk_of_an_acknowledged_object_that_is_on_no_disk_is_found(tmp_path: Path) -> None:
    disk, current = Disk(root=tmp_path, own=False), True
    cluster: Any = SimpleNamespace(nodes=[SimpleNamespace(disk=disk)])
    referred = {(5, bytes.fromhex("ab" * 32)): info("ledger/a", 5)}
    operator: Any = SimpleNamespace(referred=lambda: referred, is_current=lambda info: current)
    path = tmp_path / "chunks" / "ab" / ("00000005-" + "ab" * 32)
    path.parent.mkdir(parents=True)
    path.touch()
    history = History()
    check_chunks_left(cluster, operator, history)
    path.unlink()
    current = False  # it was overwritten meanwhile
    check_chunks_left(cluster, operator, history)
    assert history.violations == []
    current = True
    check_chunks_left(cluster, operator, history)
    assert "ledger/a version 5 was acknowledged, and a chunk of it is on no disk" in history.violations[0]


def test_a_lost_entry_is_found() -> None:
    ledger = Ledger(history=History())
    entry = held(ledger, "ledger/a", 5)
    ledger.missed(entry, was="asked", who="r")
    assert ledger.history.violations == []
    ledger.missed(entry, was="held", who="r")
    assert "did not find ledger/a, acknowledged as version 5" in ledger.history.violations[0]


def test_wrong_bytes_and_bytes_of_another_entry_are_found() -> None:
    ledger = Ledger(history=History())
    entry = held(ledger, "ledger/a", 5)
    ledger.found(entry, value("ledger/a", 1000), was="held", who="r")
    assert ledger.history.violations == []
    ledger.found(entry, value("ledger/a", 1000)[:-1] + b"?", was="held", who="r")
    ledger.found(entry, value("ledger/b", 1000), was="held", who="r")
    ledger.found(entry, b"", was="held", who="r")
    assert len(ledger.history.violations) == 3


def test_an_entry_that_comes_back_is_found() -> None:
    ledger = Ledger(history=History())
    entry = held(ledger, "ledger/a", 5)
    ledger.gone(entry)
    ledger.found(entry, entry.data, was="gone", who="r")
    assert len(ledger.history.violations) == 1


def test_a_whole_listing_passes() -> None:
    ledger = Ledger(history=History())
    for key, version in (("ledger/a", 5), ("ledger/b", 6), ("ledger/c", 9)):
        held(ledger, key, version)
    assert listed(ledger, ([info("ledger/a", 5)], 8), ([info("ledger/b", 6)], 8)) == []


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([([info("ledger/a", 5)], 8)], "has ledger/b at version None"),
        ([([info("ledger/a", 5), info("ledger/b", 5)], 8)], "has ledger/b at version 5, acknowledged as 6"),
        ([([info("ledger/b", 6), info("ledger/a", 5)], 8)], "out of order"),
        ([([info("ledger/a", 5)], 8), ([info("ledger/a", 5), info("ledger/b", 6)], 8)], "twice"),
        ([([info("ledger/a", 5)], 8), ([info("ledger/b", 6)], 9)], "of the revisions [8, 9]"),
        ([([info("ledger/a", 5), info("ledger/b", 6), info("ledger/x", 7)], 8)], "what is not of it"),
        ([([info("ledger/a", 5), info("ledger/b", 6)], 5)], "what is not of it"),
    ],
)
def test_a_wrong_listing_is_found(pages: list[tuple[list[ObjectInfo], int]], message: str) -> None:
    ledger = Ledger(history=History())
    held(ledger, "ledger/a", 5)
    held(ledger, "ledger/b", 6)
    assert any(message in violation for violation in listed(ledger, *pages)), ledger.history.violations
