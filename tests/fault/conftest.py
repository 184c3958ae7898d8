"""The cluster that these tests run on."""

from __future__ import annotations

from tests.support.cluster import cluster

__all__ = ["cluster"]
