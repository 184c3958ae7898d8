"""How etcd is reached: TLS, users and their tokens, prefixes, a node's settings; and what a quiet watch learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from client.client import Client
from client.errors import MetadataUnavailable, Misconfigured
from client.placement import Layout, Node
from client.retry import Deadline
from storenode import etcd as etcd_module
from storenode.etcd import EtcdMetaStore
from storenode.etcd_connections import tls_context
from storenode.identity import claim
from storenode.layouts import create_layout
from storenode.lineage import create_cluster
from storenode.metastore import Event
from tests.support.cluster import eventually
from tests.support.etcd import Etcd, running_etcd
from tests.support.metastore_contract import put

USER, PASSWORD = "forebay", "correct horse"
pytestmark = pytest.mark.slow
TOKEN_S = 1

# --- TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority of one's own, and a certificate by it that servers and clients may use on 127.0.0.1."""
    extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
    (tmp_path / "ext").write_text(extensions)
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {new_key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2 -addext keyUsage=critical,keyCertSign",
        f"req {new_key} -keyout key.pem -out csr.pem -subj /CN=member",
        "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile ext",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_tls_is_spoken_with_who_has_a_certificate_of_the_authority_and_nobody_else(certificates: Path, tmp_path: Path) -> None:
    ca, cert, key = (certificates / name for name in ("ca.pem", "cert.pem", "key.pem"))
    options = [f"--cert-file={cert}", f"--key-file={key}", f"--trusted-ca-file={ca}", "--client-cert-auth"]
    tls = tls_context(ca_file=ca, cert_file=cert, key_file=key)
    with running_etcd(tmp_path, options=options, tls=tls) as etcd:
        address = etcd.address()
        with etcd.store(address) as store:
            large = os.urandom(1_000_000)  # Many records of TLS, in both directions.
            revision = put(store, "k", large)
            assert store.watch("k", "l", after_revision=revision - 1, timeout_s=10).events == (
                Event(key="k", revision=revision, value=large),
            )
            found = store.get("k")
            assert found is not None
            assert found.value == large
        # The first does not trust etcd, and etcd does not trust the second, who learns of it as TLS has it.
        for trust, said in ((None, "CERTIFICATE_VERIFY_FAILED"), (ca, "alert|EOF|reset|closed")):
            stranger = EtcdMetaStore(address, tls=tls_context(ca_file=trust, cert_file=None, key_file=None), timeout_s=1.0)
            with pytest.raises(MetadataUnavailable, match=said):
                stranger.get("k")
            stranger.close()


def test_files_for_tls_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no-such-file"):
        tls_context(ca_file=tmp_path / "no-such-file", cert_file=None, key_file=None)


# --- users


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd that asks who it is, whose tokens last a second, and where USER may use the prefix t1."""
    with running_etcd(tmp_path, options=[f"--auth-token-ttl={TOKEN_S}"]) as etcd:
        range_of_t1 = {"permType": "READWRITE", "key": "dDEv", "range_end": "dDEw"}  # t1/ to t10
        for path, message in (
            ("user/add", {"name": "root", "password": "r"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("role/add", {"name": "role"}),
            ("role/grant", {"name": "role", "perm": range_of_t1}),
            ("user/add", {"name": USER, "password": PASSWORD}),
            ("user/grant", {"user": USER, "role": "role"}),
            ("enable", {}),
        ):
            etcd.ask(f"/v3/auth/{path}", message)
        yield etcd


def test_a_token_that_expired_is_renewed(guarded: Etcd) -> None:
    address = guarded.address()
    with guarded.store(address, user=USER, password=PASSWORD) as store:
        revision = put(store, "k", b"1")
        calls: list[Callable[[], object]] = [
            lambda: put(store, "k", b"2"),
            lambda: store.get("k"),
            lambda: store.watch("k", "l", after_revision=revision - 1, timeout_s=10).events[0],
        ]
        for call in calls:
            token = store._gateway._token
            eventually(partial(_has_expired, guarded, token), what="the token expires")
            assert call()
            assert store._gateway._token != token


def test_who_may_not_is_told_so_without_secrets(guarded: Etcd) -> None:
    address = guarded.address()
    for settings, said in (
        ({}, "FOREBAY_ETCD_USER"),
        ({"user": USER, "password": "wrong horse"}, "invalid user ID or password"),
        ({"user": "nobody", "password": PASSWORD}, "FOREBAY_ETCD_USER"),
    ):
        with guarded.store(address, **settings) as store, pytest.raises(Misconfigured, match=said) as refused:
            store.get("k")
        assert "horse" not in str(refused.value)
    with guarded.store(guarded.address(), user=USER, password=PASSWORD) as elsewhere:
        for call in (lambda: elsewhere.get("k"), lambda: elsewhere.watch("k", "l", after_revision=1, timeout_s=1)):
            with pytest.raises(Misconfigured, match="permission denied"):
                call()


def _has_expired(etcd: Etcd, token: str) -> bool:
    # Using a token prolongs its life, so it is looked at more seldom than it lasts.
    time.sleep(2.5 * TOKEN_S)
    url = f"http://{etcd.members[0].endpoint}/v3/kv/range"
    try:
        urlopen(Request(url, json.dumps({"key": "dDEv"}).encode(), {"Authorization": token}), timeout=5).close()
    except HTTPError as exc:
        exc.close()
        return True
    return False


# --- prefixes and watches


def test_prefixes_keep_clusters_apart(etcd_one: Etcd) -> None:
    with ExitStack() as stack:
        one, other = (stack.enter_context(etcd_one.store(etcd_one.address())) for _ in range(2))
        start = put(one, "a")
        put(one, "\U0010ffff")
        put(other, "b")
        assert [item.key for item in one.range("", "\U0010ffff\0", limit=10).items] == ["a", "\U0010ffff"]
        assert [item.key for item in other.range("", "\U0010ffff\0", limit=10).items] == ["b"]
        assert other.get("a") is None
        seen = other.watch("", "z", after_revision=start, timeout_s=0)
        assert [event.key for event in seen.events] == ["b"]


def test_a_watch_that_must_not_wait_has_all_that_happened(etcd_one: Etcd) -> None:
    with etcd_one.store(etcd_one.address()) as store:
        start = store.revision()
        revisions = [put(store, "p/k", b"%d" % n) for n in range(3)]
        put(store, "q/other")
        seen = store.watch("p/", "p0", after_revision=start, timeout_s=0)
        assert [event.revision for event in seen.events] == revisions
        nothing = store.watch("r/", "r0", after_revision=start, timeout_s=0)
        assert nothing.events == ()
        assert nothing.revision > revisions[-1]


def test_the_mark_of_a_watch_is_nobodys_key(etcd_one: Etcd) -> None:
    with etcd_one.store(etcd_one.address()) as store:
        start = put(store, "k")
        put(store, "k")
        put(store, "z")
        assert [event.key for event in store.watch("", "l", after_revision=start, timeout_s=0).events] == ["k"]
        marked = store.watch("a", "b", after_revision=start, timeout_s=0).revision
        assert marked == store.revision()
        assert store.watch("", "b", after_revision=start, timeout_s=0.5).events == ()
        assert [item.key for item in store.range("", "\U0010ffff", limit=10).items] == ["k", "z"]
        assert [item.key for item in store.range("", "\U0010ffff", limit=1).items] == ["k"]


def test_a_watch_of_what_is_quiet_keeps_up_with_a_busy_store(etcd_one: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "_MAX_LAG", 10)
    with etcd_one.store(etcd_one.address()) as store:
        start = put(store, "quiet")
        revisions = [put(store, "z/busy", b"%d" % n) for n in range(11)]
        assert store.watch("quiet", "r", after_revision=revisions[2], timeout_s=0.5).revision == revisions[2]
        seen = store.watch("quiet", "r", after_revision=start, timeout_s=0.5)
        assert seen.events == ()
        assert seen.revision > revisions[-1]
        # What others compact does not reach who has kept up.
        etcd_one.compact(revisions[-1])
        assert store.watch("quiet", "r", after_revision=seen.revision, timeout_s=0).events == ()


def test_one_connection_more_than_allowed_is_refused(etcd_one: Etcd) -> None:
    with etcd_one.store(etcd_one.address(), max_connections=1, timeout_s=0.2) as store:
        put(store, "k")
        reply = store._gateway._connections.open(etcd_one.members[0].endpoint, deadline=Deadline(1.0))
        with pytest.raises(MetadataUnavailable, match="FOREBAY_MAX_ETCD_CONNECTIONS"):
            store.get("k")
        reply.close()
        assert store.get("k") is not None


# --- nodes


def test_a_node_stores_and_serves_with_its_metadata_in_etcd(etcd_one: Etcd, tmp_path: Path) -> None:
    address = etcd_one.address()
    with etcd_one.store(address) as store:
        cluster_id = create_cluster(store)
        with claim(tmp_path / "node", cluster_id=cluster_id) as found:
            create_layout(store, Layout(version=1, partitions=8, nodes=(Node(id=found.node_id),)))
    settings = {
        "FOREBAY_DATA_DIR": str(tmp_path / "node"),
        "FOREBAY_META": str(address),
        "FOREBAY_PORT": "0",
        "FOREBAY_LEASE_TTL_S": "60",
        "FOREBAY_RESERVE_BYTES": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "client.cli", "node", "--json"], env={**os.environ, **settings}, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            ready: dict[str, Any] = json.loads(process.stdout.readline())
            with Client([ready["endpoint"]]) as client:
                client.buckets.create("data", replicas=1)
                client.put("data", "key", b"value", if_none_match="*")
                assert client.get("data", "key") == b"value"
                assert client.stat("data", "key").size == 5
        finally:
            process.terminate()
        process.wait()
    assert f"{address.prefix}/obj/data/key".encode() in etcd_one.names()
    assert not any(key.startswith(f"{address.prefix}/node/".encode()) for key in etcd_one.names())
