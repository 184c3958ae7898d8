"""SQLite commits in groups, and reads beside its own writers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from client.errors import Conflict
from storenode.metastore import Put, Txn, TxnResult, WouldWait
from storenode.sqlite import SqliteMetaStore
from tests.support.cluster import eventually
from tests.support.filesystem import FAST_DISK
from tests.support.metastore_contract import put

REPOSITORY = Path(__file__).resolve().parents[3]
_WRITE_MANY = """
import sys, threading
from pathlib import Path
from storenode.metastore import Put, Txn
from storenode.sqlite import SqliteMetaStore

store = SqliteMetaStore(Path(sys.argv[1]))

def write(thread):
    for n in range(10**6):
        store.txn_many([Txn(changes=[Put(key=f"t{thread}/{n:06}/{i:02}", value=bytes(1000))]) for i in range(50)])
        if thread == 0:
            print(n, flush=True)

for thread in range(2):
    threading.Thread(target=write, args=(thread,)).start()
"""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as folder:
        yield Path(folder, "meta.db")


# --- many at once


def test_a_crash_among_many_transactions_keeps_all_of_them_or_none(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITE_MANY, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = -1
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 10:
                os.kill(process.pid, signal.SIGKILL)
    with closing(SqliteMetaStore(path)) as store:
        left = [len(store.range(f"t{thread}/", f"t{thread}0", limit=100_000).items) for thread in range(2)]
        assert {num % 50 for num in left} == {0}
        assert sum(left) >= 50 * (acknowledged + 1)


def test_one_commit_serves_all_that_waited_for_the_one_before(path: Path) -> None:
    commits: list[str] = []
    with closing(SqliteMetaStore(path)) as store, ThreadPoolExecutor(8) as pool:
        store._writer.db.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
        with store._reader.lock:  # The first commit waits for this, and all others for the first.
            first = pool.submit(put, store, "k0")
            eventually(store._writer.lock.locked, what="the first is committing")
            others = [pool.submit(put, store, f"k{n}") for n in range(1, 8)]
            eventually(lambda: len(store._group._queue) == 8, what="all others wait")
        revisions = [waiting.result(10) for waiting in (first, *others)]
        assert len(commits) == 2
        assert sorted(revisions) == list(range(2, 10))
        store._writer.db.set_trace_callback(None)


def test_a_lease_that_is_gone_costs_only_the_caller_that_named_it(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        gone = store.grant(60)
        store.revoke(gone)
        good, bad = [Txn(changes=[Put(key="a", value=b"")])], [Txn(changes=[Put(key="b", value=b"", lease=gone)])]
        before, failed, after = store._commit([good, bad, good])
        assert isinstance(failed, Conflict)
        assert (before, after) == ([TxnResult(ok=True, revision=2)], [TxnResult(ok=True, revision=3)])
        assert store.get("b") is None


def test_transactions_larger_than_the_page_cache_are_synced_once(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        txns = [Txn(changes=[Put(key=f"k{n}", value=bytes(100_000))]) for n in range(60)]
        before = path.stat().st_size
        with store._writing() as tables:
            for txn in txns:
                tables.txn(txn)
            assert path.stat().st_size == before
        assert path.stat().st_size > 6_000_000


# --- reads that must not wait


def test_reads_go_on_beside_a_transaction_that_is_not_committed_yet(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        put(store, "k", b"before")
        with store._writing() as tables:
            tables.txn(Txn(changes=[Put(key="k", value=b"after")]))
            for found in (store.get_now("k"), store.get("k"), *store.get_many(["k"])):
                assert found is not None
                assert found.value == b"before"
        found = store.get_now("k")
        assert found is not None
        assert found.value == b"after"


def test_who_must_not_wait_is_told_so_while_another_thread_reads(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        with store._reader.lock, pytest.raises(WouldWait):
            store.get_now("k")
        assert store.get_now("k") is None


def test_who_must_not_wait_is_told_so_while_another_process_commits(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(WouldWait):
            store.get_now("k")
        other.execute("ROLLBACK")
        assert store.get_now("k") is None


def test_who_must_not_wait_is_told_so_before_expired_keys_are_cleared(path: Path) -> None:
    now_s = [0.0]
    with closing(SqliteMetaStore(path, clock=lambda: now_s[0])) as store:
        put(store, "bound", lease=store.grant(60))
        put(store, "free")
        now_s[0] = 60.0
        with pytest.raises(WouldWait):
            store.get_now("bound")
        assert store.get_now("free") is not None  # What lives under no lease has nothing to do with it.
        assert store.get("bound") is store.get_now("bound") is None
