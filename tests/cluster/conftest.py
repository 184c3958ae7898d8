"""The cluster that these tests run on."""

from __future__ import annotations

from tests.support.cluster import cluster, shared_cluster
from tests.support.etcd import etcd_one, etcd_three

__all__ = ["cluster", "etcd_one", "etcd_three", "shared_cluster"]
