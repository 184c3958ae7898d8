"""Buckets: created, changed in part, listed, deleted."""

from __future__ import annotations

import pytest

from client.buckets import Buckets
from client.errors import BucketExists, BucketNotFound, InvalidName, InvalidRequest
from client.record import BucketPolicy
from tests.support.fake_store import FakeCatalog


@pytest.fixture
def buckets() -> Buckets:
    return Buckets(FakeCatalog())


def test_a_bucket_is_created_once(buckets: Buckets) -> None:
    assert buckets.create("data", replicas=2) == BucketPolicy(replicas=2)
    buckets.create("data", replicas=2)
    with pytest.raises(BucketExists):
        buckets.create("data", replicas=3)
    assert buckets.list() == {"data": BucketPolicy(replicas=2)}


def test_only_what_is_given_changes(buckets: Buckets) -> None:
    buckets.create("data", replicas=2, ack="all", versions=3)
    assert buckets.set("data", versions=0) == BucketPolicy(replicas=2, ack="all", versions=0)
    assert buckets.set("data", replicas=1, ack="one") == BucketPolicy(replicas=1, ack="one", versions=0)
    assert buckets.get("data") == BucketPolicy(replicas=1, ack="one", versions=0)


def test_a_deleted_bucket_is_gone(buckets: Buckets) -> None:
    buckets.create("data")
    buckets.delete("data")
    with pytest.raises(BucketNotFound):
        buckets.get("data")
    with pytest.raises(BucketNotFound):
        buckets.set("data", replicas=1)


def test_bad_names_and_policies_are_refused(buckets: Buckets) -> None:
    with pytest.raises(InvalidName):
        buckets.create("No")
    with pytest.raises(InvalidRequest):
        buckets.create("data", replicas=0)
    assert buckets.list() == {}
