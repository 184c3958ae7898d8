"""Members of etcd are killed, paused and unreachable; each write still has one outcome, and it can be found out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from client.errors import MetadataUnavailable, PreconditionFailed
from client.record import BucketPolicy, ObjectInfo
from client.write_id import new_write_id
from storenode.catalog import MetaCatalog
from storenode.etcd import EtcdMetaStore
from storenode.etcd_address import Endpoint, EtcdAddress
from storenode.metastore import Compare, Put
from tests.support.catalogs import MARKER_TTL_S, NEW, put, retried
from tests.support.cluster import eventually
from tests.support.etcd import Etcd, Member, free_port, running_etcd
from tests.support.metastore_contract import put as put_key
from tests.support.socket_server import Connection, SocketServer, answer, serving

TIMEOUT_S = 60.0


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """Three members, for one test that may break them."""
    with running_etcd(tmp_path, num_members=3) as etcd:
        yield etcd


def catalog_on(meta: EtcdMetaStore) -> MetaCatalog:
    return MetaCatalog(meta, marker_ttl_s=MARKER_TTL_S)


def test_of_racing_writers_exactly_one_wins_each_key_while_the_leader_is_killed(etcd: Etcd) -> None:
    num_keys, num_writers, turn = 40, 3, threading.Barrier(3)
    leader = etcd.leader()
    address = etcd.address(leader, *(member for member in etcd.members if member is not leader))
    with ExitStack() as stack:
        metas = [stack.enter_context(etcd.store(address, timeout_s=2.0)) for _ in range(num_writers)]
        catalogs = [catalog_on(meta) for meta in metas]
        catalogs[0].create_bucket("data", BucketPolicy())
        killed = threading.Event()

        def write(writer: int) -> dict[str, ObjectInfo]:
            won = {}
            for n in range(num_keys):
                turn.wait(TIMEOUT_S)
                key, write_id = f"k{n}", new_write_id()
                if n == num_keys // 4 and writer == 0:
                    leader.kill()
                    killed.set()
                with suppress(PreconditionFailed):
                    # Repeated with its write id until there is an answer, as clients do.
                    won[key] = retried(partial(put, catalogs[writer], key, write_id=write_id, condition=NEW))
            return won

        with ThreadPoolExecutor(num_writers) as pool:
            won = list(pool.map(write, range(num_writers), timeout=TIMEOUT_S))
        assert killed.is_set()
        winners = {key: info for part in won for key, info in part.items()}
        assert sum(map(len, won)) == len(winners) == num_keys
        for key, info in winners.items():
            found = catalogs[1].lookup("data", key)
            assert (found.record.write_id, found.version) == (info.record.write_id, info.version)
        leader.start()
        etcd.await_health()
        with etcd.store(address) as meta:
            assert catalog_on(meta).lookup("data", "k0").version == winners["k0"].version


def test_a_write_whose_answer_was_lost_is_found_by_its_marker(etcd: Etcd) -> None:
    member, lost = etcd.members[0], list[bytes]()

    def lose_the_answer_of_a_write(connection: Connection) -> None:
        while request := connection.request():
            with urlopen(Request(f"http://{member.endpoint}{request.path}", request.body), timeout=TIMEOUT_S) as reply:
                body = reply.read()
            if b"request_put" in request.body and not lost:
                lost.append(body)
                return
            connection.send(answer(200, body))

    address = etcd.address(member)
    with etcd.store(address) as store, serving(lose_the_answer_of_a_write) as relay:
        catalog_on(store).create_bucket("data", BucketPolicy())
        with etcd.store(replace(address, endpoints=(_endpoint_of(relay), member.endpoint))) as behind:
            catalog, write_id = catalog_on(behind), new_write_id()
            with pytest.raises(MetadataUnavailable, match="whether it happened is unknown"):
                put(catalog, "k", write_id=write_id, condition=NEW)
            version = json.loads(lost[0])["header"]["revision"]
            assert put(catalog, "k", write_id=write_id, condition=NEW).version == int(version)
            with pytest.raises(PreconditionFailed):
                put(catalog, "k", condition=NEW)


def test_a_paused_member_costs_a_read_its_share_of_the_time_and_nobody_after_it(etcd: Etcd) -> None:
    member = next(member for member in etcd.members if member is not etcd.leader())
    others = [other for other in etcd.members if other is not member]
    with etcd.store(etcd.address(member, *others), timeout_s=6.0) as store:
        put_key(store, "k", b"before")
        with member.paused():
            began_s = time.monotonic()
            found = store.get("k")
            assert found is not None
            assert found.value == b"before"
            assert 1.9 < time.monotonic() - began_s < 4.0
            began_s = time.monotonic()
            revision = put_key(store, "k", b"after")
            assert store.watch("k", "l", after_revision=revision - 1, timeout_s=TIMEOUT_S).revision == revision
            assert time.monotonic() - began_s < 1.9


def test_a_transaction_that_a_paused_engine_was_asked_for_has_an_unknown_outcome(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as etcd, etcd.store(etcd.address(), timeout_s=0.5) as store:
        put_key(store, "k", b"before")
        with etcd.members[0].paused():
            with pytest.raises(MetadataUnavailable, match="whether it happened is unknown"):
                put_key(store, "k", b"after")
            with pytest.raises(MetadataUnavailable, match=r"no answer .* within 0\.5 s"):
                store.get("k")
        eventually(lambda: not _failure(store), what="it answers again")
        found = store.get("k")
        assert found is not None
        assert found.value in (b"before", b"after")


def test_a_member_that_is_not_there_is_passed_over(etcd: Etcd) -> None:
    absent = Member(command=(), endpoint=Endpoint(host="127.0.0.1", port=free_port()), log=Path())
    with etcd.store(etcd.address(absent, *etcd.members)) as store:
        put_key(store, "k")
        assert store.get("k") is not None


def test_without_a_majority_calls_fail_in_time_and_work_again_with_one(etcd: Etcd) -> None:
    left, *others = etcd.members
    with etcd.store(etcd.address(left), timeout_s=0.5) as store:
        put_key(store, "k")
        for other in others:
            other.kill()
        eventually(lambda: "no leader" in _failure(store), what="the member that is left knows that it has no leader")
        began_s = time.monotonic()
        with pytest.raises(MetadataUnavailable, match="no leader"):
            store.watch("a", "z", after_revision=1, timeout_s=TIMEOUT_S)
        assert time.monotonic() - began_s < 5.0
        for other in others:
            other.start()
        etcd.await_health()
        assert store.get("k") is not None


def test_a_watch_goes_on_at_another_member_when_its_own_is_killed(etcd: Etcd) -> None:
    first, second, third = etcd.members
    address = etcd.address(first, second, third)
    with etcd.store(address) as store, etcd.store(replace(address, endpoints=address.endpoints[1:])) as other:
        start = put_key(store, "k", b"1")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.watch, "k", "l", after_revision=start, timeout_s=TIMEOUT_S)
            eventually(lambda: store._gateway._connections._used, what="the watch has a connection")
            first.kill()
            # Repeated, for the killed one may have led.
            change = [Compare(key="k", mod_revision=start)], [Put(key="k", value=b"2")]
            eventually(lambda: not _failure(other) and not other.txn(*change).ok, what="the change is made")
            seen = waiting.result(TIMEOUT_S)
        assert [event.value for event in seen.events] == [b"2"]


def test_writes_go_on_when_the_lease_of_their_markers_was_lost(etcd: Etcd) -> None:
    with etcd.store(etcd.address()) as store:
        catalog = catalog_on(store)
        catalog.create_bucket("data", BucketPolicy())
        first = put(catalog, "a")
        etcd.end_leases()
        second = put(catalog, "b")
        assert second.version > first.version
        assert catalog.lookup("data", "b").record.write_id == second.record.write_id


def _endpoint_of(server: SocketServer) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=int(server.url.rpartition(":")[2]))


def _failure(store: EtcdMetaStore) -> str:
    """What is wrong with the store now; empty if it answers."""
    try:
        store.get("k")
    except MetadataUnavailable as error:
        return error.message
    return ""


def test_without_a_majority_reads_go_on_at_the_levels_that_need_none(etcd: Etcd) -> None:
    with etcd.store(etcd.address(), timeout_s=2.0) as meta:
        catalog = catalog_on(meta)
        catalog.create_bucket("data", BucketPolicy())
        info = put(catalog, "k")
        lone, *others = etcd.members
        with etcd.store(EtcdAddress(endpoints=(lone.endpoint,))) as near:
            eventually(lambda: near.get_local([]).revision >= info.version, what="the member has heard of it")
        for member in others:
            member.kill()
        assert catalog.lookup("data", "k", consistency="eventual") == info
        assert catalog.lookup("data", "k", consistency="session", seen=info.version) == info
        with pytest.raises(MetadataUnavailable):
            catalog.lookup("data", "k")
        with pytest.raises(MetadataUnavailable):
            # Another client, which has seen what this member may not have heard of.
            catalog.lookup("data", "k", consistency="session", seen=info.version + 1)
        others[0].start()
        new = retried(lambda: put(catalog, "k"))
        assert retried(lambda: catalog.lookup("data", "k", consistency="session", seen=new.version)) == new
