"""SQLite passes the contract of every metadata engine, and keeps what is its own: one file, several processes, power cuts."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from client.errors import DiskFull, MetadataCorrupt, MetadataUnavailable, Misconfigured
from storenode.metastore import Compare, MetaStore, Put
from storenode.sqlite import SqliteMetaStore, boot_clock
from tests.support.filesystem import FAST_DISK
from tests.support.metastore_contract import MetaStoreContract, put

REPOSITORY = Path(__file__).resolve().parents[3]
HISTORY = 100
_WRITE_FOREVER = """
import sys
from pathlib import Path
from storenode.metastore import Put
from storenode.sqlite import SqliteMetaStore

store = SqliteMetaStore(Path(sys.argv[1]))
for n in range(10**6):
    store.txn([], [Put(key=f"{side}/{n:06}", value=bytes(20_000)) for side in "ab"])
    print(n, flush=True)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST_DISK) as folder:
        yield Path(folder, "meta.db")


class Skipping:
    """The boot clock, which tests may put forward. It can be pickled; another process gets its present position."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    def __call__(self) -> float:
        return boot_clock() + self.skipped_s


class TestSqliteMetaStore(MetaStoreContract):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Callable[[], MetaStore]:
        self.clock = Skipping()
        return partial(
            SqliteMetaStore, tmp_path / "meta.db", history_revisions=HISTORY, poll_interval_s=0.002, clock=self.clock
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.skipped_s += seconds

    def compact(self, store: MetaStore) -> None:
        for n in range(HISTORY):
            put(store, "filler", b"%d" % n)


def num_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM changes").fetchone()[0])


# --- opening


def test_many_can_open_a_new_file_at_once(path: Path) -> None:
    start = threading.Barrier(6)

    def open_and_put(n: int) -> None:
        start.wait(10)
        with closing(SqliteMetaStore(path)) as store:
            put(store, f"k{n}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_and_put, range(6)))
    with closing(SqliteMetaStore(path)) as store:
        assert len(store.range("k", "l", limit=10).items) == 6
        assert store.revision() == 7


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"these are not the bytes of any database" * 100)
    with pytest.raises(Misconfigured, match="not a database"):
        SqliteMetaStore(path)
    assert path.read_bytes().startswith(b"these")


def test_a_database_of_another_program_is_refused_and_unharmed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(Misconfigured, match="another program"):
        SqliteMetaStore(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_later_schema_is_refused(path: Path) -> None:
    SqliteMetaStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(Misconfigured, match="schema 2, and this program knows 1"):
        SqliteMetaStore(path)


def test_a_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(Misconfigured, match="missing/meta"):
        SqliteMetaStore(path.parent / "missing" / "meta.db")


# --- durability and failures


def test_commits_are_synced_as_durably_as_sqlite_can(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        assert store._writer.db.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert store._writer.db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_killed_process_leaves_whole_transactions_only(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITE_FOREVER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = -1
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 30:
                os.kill(process.pid, signal.SIGKILL)
    with closing(SqliteMetaStore(path)) as store:
        left = [[item.key[1:] for item in store.range(side, side + "0", limit=10_000).items] for side in "ab"]
        assert left[0] == left[1]
        assert acknowledged < len(left[0]) <= acknowledged + 2


def test_a_process_that_holds_the_file_too_long_is_an_outage(path: Path) -> None:
    with closing(SqliteMetaStore(path, busy_timeout_s=0.05)) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for call in (store.revision, lambda: put(store, "k")):
            with pytest.raises(MetadataUnavailable, match=r"other processes kept it locked for 0\.05 s"):
                call()
        other.execute("ROLLBACK")
        assert put(store, "k") == 2


def test_a_thread_that_holds_the_store_too_long_is_an_outage(path: Path) -> None:
    with closing(SqliteMetaStore(path, busy_timeout_s=0.05)) as store:
        with store._reader.lock, pytest.raises(MetadataUnavailable, match="other threads"):
            store.get("k")
        with store._writer.lock, pytest.raises(MetadataUnavailable, match="other threads"):
            put(store, "k")
        assert put(store, "k") == 2


def test_a_full_disk_changes_nothing(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        before = put(store, "k")
        (num_pages,) = store._writer.db.execute("PRAGMA page_count").fetchone()
        store._writer.db.execute(f"PRAGMA max_page_count = {num_pages}")
        with pytest.raises(DiskFull, match="full"):
            store.txn([], [Put(key="small", value=b""), Put(key="large", value=bytes(100_000))])
        assert store.get("small") is None
        assert store.revision() == before
        store._writer.db.execute("PRAGMA max_page_count = 1000000")
        assert put(store, "large", bytes(100_000)) == before + 1


def test_a_damaged_file_is_named_as_such(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        for n in range(50):
            put(store, f"k{n}", bytes(1000))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(MetadataCorrupt, match="malformed"), closing(SqliteMetaStore(path)) as store:
        store.get("k1")


# --- leases


def test_a_reboot_ends_all_leases(path: Path) -> None:
    with closing(SqliteMetaStore(path, clock=lambda: 1000.0, boot_id="first")) as store:
        put(store, "bound", lease=store.grant(60))
        put(store, "free")
    with closing(SqliteMetaStore(path, clock=lambda: 1001.0, boot_id="first")) as store:
        assert store.get("bound") is not None
    with closing(SqliteMetaStore(path, clock=lambda: 3.0, boot_id="second")) as store:
        assert store.get("bound") is None
        assert store.get("free") is not None
        lease = store.grant(60)
        assert store.keep_alive(lease)


def test_a_number_of_a_lease_is_never_given_again(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        first = store.grant(60)
        store.revoke(first)
    with closing(SqliteMetaStore(path)) as store:
        assert store.grant(60) > first


@pytest.mark.parametrize("end", ["seen by a reader", "seen by a writer", "revoked"])
def test_a_lease_with_very_many_keys_ends_in_several_transactions_and_shows_none_of_them(path: Path, end: str) -> None:
    now_s = [0.0]
    num_keys, bound = 1300, 1024
    deleted_by_transaction: list[int] = []
    cursors: list[str] = []

    def trace(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            deleted_by_transaction.append(0)
        elif statement.startswith("INSERT INTO changes"):
            deleted_by_transaction[-1] += 1
        elif "SET dropped_to" in statement:
            cursors.append(statement)

    with closing(SqliteMetaStore(path, clock=lambda: now_s[0])) as store:
        lease = store.grant(60)
        for at in range(0, num_keys, 100):
            store.txn([], [Put(key=f"p/{n:05}", value=b"", lease=lease) for n in range(at, at + 100)])
        start = store.revision()
        store._writer.db.set_trace_callback(trace)
        if end == "revoked":
            store.revoke(lease)
        else:
            now_s[0] = 61.0
        if end == "seen by a writer":
            assert store.txn([Compare(key=f"p/{num_keys - 1:05}", mod_revision=0)], []).ok
        assert store.range("p/", "p0", limit=1).items == ()
        store._writer.db.set_trace_callback(None)
        assert deleted_by_transaction[:2] == [bound, num_keys - bound]
        assert len(cursors) == 1
        assert store.revision() == start + -(-num_keys // 128)
        assert not store.keep_alive(lease)


# --- history


def test_history_is_bounded(path: Path) -> None:
    with closing(SqliteMetaStore(path, history_revisions=20)) as store:
        for n in range(100):
            put(store, f"k{n % 3}", b"%d" % n)
        assert num_rows(path) <= 20 + 3
        oldest = store.revision() - 20
        (item,) = store.range("k0", "k1", limit=1, revision=oldest).items
        assert item.mod_revision <= oldest


def test_deleted_keys_leave_nothing_behind_once_compacted(path: Path) -> None:
    with closing(SqliteMetaStore(path, history_revisions=5)) as store:
        for n in range(20):
            put(store, f"k{n}", lease=store.grant(60))
        for lease in range(1, 21):
            store.revoke(lease)
        for _ in range(6):
            put(store, "last")
        assert num_rows(path) <= 6


def test_a_history_made_shorter_is_caught_up_with_little_by_little(path: Path) -> None:
    with closing(SqliteMetaStore(path)) as store:
        for n in range(300):
            put(store, "k", b"%d" % n)
    with closing(SqliteMetaStore(path, history_revisions=10)) as store:
        put(store, "k")
        assert 40 < num_rows(path) < 60
        put(store, "k")
        assert num_rows(path) <= 11


# --- watches


def test_an_idle_watch_polls_at_its_interval_and_moves_its_revision_along(path: Path) -> None:
    now_s = [100.0]
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now_s[0] += seconds
        put(store, "elsewhere")

    with closing(SqliteMetaStore(path, poll_interval_s=0.25, clock=lambda: now_s[0], wait=wait)) as store:
        seen = store.watch("p/", "p0", after_revision=store.revision(), timeout_s=0.6)
        assert waits == pytest.approx([0.25, 0.25, 0.1])
        assert (seen.events, seen.revision) == ((), store.revision())
