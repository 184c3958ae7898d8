"""etcd, of one member and of three, passes the contract of every metadata engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from storenode.etcd import EtcdMetaStore
from storenode.metastore import MetaStore
from tests.support.etcd import Etcd
from tests.support.metastore_contract import MetaStoreContract

pytestmark = pytest.mark.slow
_SLACK_S = 10.0


class EtcdContract(MetaStoreContract):
    """What both have in common."""

    etcd: Etcd

    @pytest.fixture
    def opener(self, servers: Etcd) -> Iterator[Callable[[], MetaStore]]:
        self.etcd = servers
        yield partial(EtcdMetaStore, servers.address(), timeout_s=20.0)
        servers.end_leases()

    def compact(self, store: MetaStore) -> None:
        self.etcd.compact(store.revision())


class TestOneMember(EtcdContract):
    """Time passes at once: a lease that would expire meanwhile is revoked, which is what etcd itself does then."""

    @pytest.fixture
    def servers(self, etcd_one: Etcd) -> Etcd:
        return etcd_one

    def pass_time(self, seconds: float) -> None:
        for lease in self.etcd.leases():
            if self.etcd.left_s(lease) <= seconds:
                self.etcd.ask("/v3/lease/revoke", {"ID": lease})


class TestThreeMembers(EtcdContract):
    """Time passes as it does."""

    @pytest.fixture
    def servers(self, etcd_three: Etcd) -> Etcd:
        return etcd_three

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)
        # etcd's clock counts from when it granted or renewed, and it looks for expired leases twice a second.
        end_s = time.monotonic() + _SLACK_S
        while any(self.etcd.left_s(lease) <= 0 for lease in self.etcd.leases()):
            assert time.monotonic() < end_s, "expired leases were not revoked"
            time.sleep(0.05)
