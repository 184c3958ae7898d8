"""How many transactions one request to etcd carries, what its errors mean, and answers that are cut."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from client.errors import (
    BodyTooLarge,
    DiskFull,
    InvalidRequest,
    MetadataCorrupt,
    MetadataUnavailable,
    Misconfigured,
    StoreError,
)
from storenode.etcd_wire import Keyspace, Rejected, close_page, runs
from storenode.metastore import MAX_TXN_BYTES, MAX_TXN_OPERATIONS, OPERATION_BYTES, Compare, Delete, Put, Txn

KEYSPACE = Keyspace("p")


def create(key: str, size_bytes: int = 0) -> Txn:
    return Txn(compares=[Compare(key=key, mod_revision=0)], changes=[Put(key=key, value=bytes(size_bytes))])


def cut(txns: Sequence[Txn]) -> list[int]:
    """The lengths of the runs."""
    found = list(runs((txn, KEYSPACE.run_bytes(txn)) for txn in txns))
    assert [txn for run in found for txn in run] == list(txns)
    return list(map(len, found))


def test_as_many_transactions_share_a_request_as_etcd_allows_operations() -> None:
    assert cut([create(f"{n}") for n in range(300)]) == [MAX_TXN_OPERATIONS - 1, MAX_TXN_OPERATIONS - 1, 46]
    wide = [Txn(compares=[Compare(key=f"{n}/{m}", mod_revision=0) for m in range(28)]) for n in range(101)]
    assert cut(wide) == [100, 1]
    largest = Txn(changes=[Delete(key=f"d{n}") for n in range(MAX_TXN_OPERATIONS)])
    assert cut([create("a"), largest, create("b"), create("c")]) == [1, 1, 2]


def test_as_many_transactions_share_a_request_as_etcd_allows_bytes() -> None:
    half = MAX_TXN_BYTES // 2 - 2 * (OPERATION_BYTES + len("p/") + len("a"))
    assert cut([create("a", half), create("b", half), create("c")]) == [2, 1]
    assert cut([create("a", half), create("b", half + 1)]) == [1, 1]


def test_a_transaction_that_names_what_an_earlier_one_changes_goes_in_a_later_request() -> None:
    reads = [Txn(compares=[Compare(key="k", mod_revision=1)], changes=[Put(key=f"{n}", value=b"")]) for n in range(3)]
    writes = Txn(changes=[Put(key="k", value=b"")])
    assert cut([*reads, writes]) == [4]
    assert cut([writes, *reads]) == [1, 3]
    assert cut([writes, writes]) == [1, 1]
    assert cut([writes, Txn(changes=[Delete(key="k")]), create("a")]) == [1, 2]


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (8, "etcdserver: mvcc: database space exceeded", DiskFull),
        (8, "etcdserver: too many requests", MetadataUnavailable),
        (3, "etcdserver: request is too large", BodyTooLarge),
        (3, "etcdserver: too many operations in txn request", InvalidRequest),
        (3, "etcdserver: user name is empty", Misconfigured),
        (7, "etcdserver: permission denied", Misconfigured),
        (15, "etcdserver: corrupt cluster", MetadataCorrupt),
        (14, "etcdserver: request timed out", MetadataUnavailable),
        (2, "something new", MetadataUnavailable),
    ],
)
def test_errors_of_etcd_get_their_names(code: int, message: str, kind: type[StoreError]) -> None:
    for document in ({"error": message, "message": message, "code": code}, {"error": {"grpc_code": code, "message": message}}):
        error = Rejected.of(document).named()
        assert type(error) is kind
        assert message in error.message


def test_an_answer_that_was_cut_anywhere_gives_the_keys_before_the_cut() -> None:
    kvs = [{"key": f"{n:04}", "value": "x" * n} for n in range(5)]
    body = json.dumps({"header": {"revision": "7"}, "kvs": kvs, "count": "5"}, separators=(",", ":")).encode()
    second = body.index(b'{"key":"0001"')
    for end in range(second + 1, len(body)):  # The bound on a body is far beyond the first key.
        page = json.loads(close_page(body[:end]))
        assert page["header"]["revision"] == "7"
        assert page["more"]
        assert page["kvs"] == kvs[: len(page["kvs"])]
        assert len(page["kvs"]) == body[:end].count(b"},{")
