"""The cluster that these tests run on."""

from __future__ import annotations

from tests.support.cluster import cluster, shared_cluster

__all__ = ["cluster", "shared_cluster"]
