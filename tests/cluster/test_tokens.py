"""Three nodes that share a secret: what tokens let clients do, and that nodes go on working among themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.client import Client
from client.errors import Forbidden, StoreError, Unauthenticated
from client.record import ObjectInfo
from client.verify import verify
from loader import ShardedDataset, ShardWriter
from storenode.grants import Grant, Scope, everything
from storenode.secret import create_secret, read_secret
from storenode.tokens import mint
from tests.support.cluster import CHUNK_BYTES, CLIENT, LiveCluster, eventually

pytestmark = pytest.mark.slow

DATA = os.urandom(5 * CHUNK_BYTES + 17)
ALL = everything()
# Nodes are restarted while others write.
PATIENT = {"FOREBAY_METADATA_TIMEOUT_S": "10"}


def token(path: Path, *scopes: Scope, expires_in_s: float = 600.0) -> str:
    """A token by the secret in `path`."""
    now_s = time.time()
    grant = Grant(subject="tester", scopes=scopes, expires_s=now_s + expires_in_s)
    return mint(read_secret(path), grant, now_s=now_s)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    create_secret(path)
    return path


@pytest.fixture
def guarded(tmp_path: Path, secret: Path) -> Iterator[LiveCluster]:
    """A cluster with a secret, and a bucket called data."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLIENT.items():
            patch.setenv(name, value)
        with LiveCluster(tmp_path / "cluster", secret_file=secret, environment=PATIENT) as cluster:
            with client_of(cluster, token(secret, ALL)) as client:
                client.buckets.create("data")
                client.buckets.create("other")
            yield cluster


def client_of(cluster: LiveCluster, bearer: str | None) -> Client:
    return Client(list(cluster.endpoints), token=bearer)


def test_a_scoped_token_does_what_it_says_and_nothing_else(guarded: LiveCluster, secret: Path) -> None:
    scope = Scope.of(bucket="data", verbs=("read", "write"), prefix="run/")
    with client_of(guarded, token(secret, scope)) as client:
        info = client.put("data", "run/large", DATA, ack="all")
        small = [("data", f"run/{number}", bytes([number]) * 100) for number in range(40)]
        client.put_many(small)
        assert client.get("data", "run/large") == DATA
        assert client.get("data", "run/large", start=100, end=200) == DATA[100:200]
        assert client.get_many([(bucket, key, 0, None) for bucket, key, _ in small]) == [data for _, _, data in small]
        assert len(client.list("data", prefix="run/").objects) == 41
        client.copy("data", "run/large", "data", "run/copy")
        assert verify(client, [info]).clean
        assert set(client.buckets.list()) == {"data"}
        denied: list[Callable[[], object]] = [
            lambda: client.put("data", "elsewhere", b"x"),
            lambda: client.put("other", "run/x", b"x"),
            lambda: client.put_many([("data", "run/fine", b"x"), ("data", "elsewhere", b"x")]),
            lambda: client.get("data", "elsewhere"),
            lambda: client.get_many([("other", "run/x", 0, None)]),
            lambda: client.list("data"),
            lambda: client.list("data", prefix="ru"),
            lambda: client.delete("data", "run/large"),
            lambda: client.buckets.create("another"),
            lambda: client.buckets.delete("data"),
            lambda: client.admin("POST", "/v1/admin/scrub"),
            lambda: client.admin("GET", "/v1/admin/jobs"),
        ]
        for call in denied:
            with pytest.raises(Forbidden, match="token of tester allows read, write on data/run/"):
                call()
        assert client.get("data", "run/large") == DATA


def test_copies_are_made_fetched_and_repaired_among_nodes(guarded: LiveCluster, secret: Path) -> None:
    with client_of(guarded, token(secret, ALL)) as client:
        info = client.put("data", "whole", DATA, ack="all")  # Teed: all three have it now.
        eventually(lambda: guarded.is_whole(client, info), what="three copies")
        late = guarded.node_ids[0]
        guarded.kill(late)
        missed = client.put("data", "missed", os.urandom(3 * CHUNK_BYTES))
        guarded.restart(late)
        eventually(lambda: guarded.is_whole(client, missed), what="what the node missed is fetched by it")
        ref = next(iter(client.reader(info).refs()))
        guarded.flip_bit(late, ref)
        assert not verify(client, [info]).clean
        eventually(lambda: guarded.is_whole(client, info), what="the corrupt copy is replaced")


def test_without_a_good_token_nothing_is_told(guarded: LiveCluster, secret: Path, tmp_path: Path) -> None:
    create_secret(tmp_path / "foreign")
    expired = token(secret, ALL, expires_in_s=-3600)
    for bearer, said in (
        (None, "the request has none; `forebay token create`"),
        ("nonsense", "not signed with this cluster's secret"),
        (token(tmp_path / "foreign", ALL), "not signed with this cluster's secret"),
        (expired, "the token of tester expired at 20"),
    ):
        with client_of(guarded, bearer) as client, pytest.raises(Unauthenticated, match=said) as refused:
            client.get("data", "key")
        assert not refused.value.retryable
    log = "".join((guarded.directory / f"node-{number}.log").read_text() for number in (1, 2, 3))
    assert expired not in log and secret.read_text().strip() not in log


def test_a_key_is_replaced_without_a_moment_in_which_tokens_fail(guarded: LiveCluster, secret: Path, tmp_path: Path) -> None:
    old_key = secret.read_text().strip()
    create_secret(tmp_path / "next")
    new_key = (tmp_path / "next").read_text().strip()
    old = token(secret, ALL)

    def roll(*keys: str) -> None:
        secret.write_text("\n".join(keys))
        for node_id in guarded.node_ids:
            guarded.restart(node_id)
            with client_of(guarded, old) as client:
                check(guarded, client)
        for node_id in guarded.node_ids:
            eventually(partial(sees_all, guarded, node_id, old), what=f"{node_id} knows all")

    roll(old_key, new_key)
    roll(new_key, old_key)
    new = token(secret, ALL)
    with client_of(guarded, new) as client:
        check(guarded, client)
    secret.write_text(new_key)
    for node_id in guarded.node_ids:
        guarded.restart(node_id)
        with client_of(guarded, new) as client:
            check(guarded, client)
    with client_of(guarded, old) as client, pytest.raises(Unauthenticated):
        client.get("data", "key")


def check(cluster: LiveCluster, client: Client) -> None:
    """A write that needs two nodes, and a read."""
    data = os.urandom(1000)
    info: ObjectInfo = client.put("data", "key", data)
    assert client.get("data", "key") == data
    assert info.record.replicas == 3


def sees_all(cluster: LiveCluster, node_id: str, bearer: str) -> bool:
    with Client([cluster.endpoint(node_id)], token=bearer) as client:
        try:
            return set(client.cluster.refresh().endpoints) == set(cluster.node_ids)
        except StoreError:
            return False


def test_ranks_agree_on_lanes_with_a_token_for_what_begins_with_the_key_of_the_dataset(
    guarded: LiveCluster, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = list(guarded.endpoints)
    with (
        client_of(guarded, token(secret, ALL)) as client,
        ShardWriter("forebay://data/train", {"row": "int64"}, num_lanes=4, client=client) as writer,
    ):
        writer.write_batch({"row": np.arange(100)})

    def read(rank: int, bearer: str) -> list[int]:
        options: dict[str, Any] = {"rank": rank, "world_size": 2, "batch_size": 4, "endpoints": endpoints}
        monkeypatch.setenv("FOREBAY_TOKEN", bearer)
        with ShardedDataset("forebay://data/train", locality=True, run_id="r", tail="uneven", **options) as dataset:
            return [row for batch in dataset for row in batch["row"].tolist()]

    readers = token(secret, Scope.of(bucket="data", verbs=("read",)))
    with pytest.raises(Forbidden, match=r"train\.lanes/r/"):
        read(1, readers)
    trainer = token(secret, Scope.of(bucket="data", verbs=("read", "write", "delete"), prefix="train"))
    with ThreadPoolExecutor(2) as pool:
        rows = [future.result() for future in [pool.submit(read, rank, trainer) for rank in range(2)]]
    assert sorted(rows[0] + rows[1]) == list(range(100))
