"""What a node counts, for Prometheus. One registry for each node, because several may live in one process (tests).

Routes are counted by their template, never by path, so that the number of series does not grow with names.
"""

from __future__ import annotations

from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from storenode.diskspace import DiskUsage
from storenode.threads import Pools

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
# From a cached chunk to an object of some gigabytes.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """A node's counters.

    Parameters
    ----------
    pools : Pools
        Their queues are shown.
    """

    def __init__(self, pools: Pools) -> None:
        self._registry = registry = CollectorRegistry()
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}
        ProcessCollector(registry=registry)
        self._requests = Counter("forebay_requests", "Requests answered", ["route", "method", "status"], registry=registry)
        self._seconds = Histogram(
            "forebay_request_seconds",
            "From the request's head to the end of its response",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._received = Counter("forebay_received_bytes", "Bytes of request bodies", ["route"], registry=registry)
        self._sent = Counter("forebay_sent_bytes", "Bytes of response bodies", ["route"], registry=registry)
        self._chunk_errors = Counter(
            "forebay_chunk_errors", "Chunks that could not be stored or read here, by error", ["error"], registry=registry
        )
        self._disk = Gauge("forebay_disk_bytes", "The disk that holds the chunks", ["kind"], registry=registry)
        queue = Gauge("forebay_queue_length", "Calls under way or waiting", ["pool"], registry=registry)
        for pool in pools.all():
            queue.labels(pool.name).set_function(partial(getattr, pool, "pending"))

    def answered(self, route: str, *, method: str, status: int, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """Count a request."""
        series = self._series.get((route, method, status))
        if series is None:
            # Kept, because finding them takes longer than counting.
            series = self._series[route, method, status] = (
                self._requests.labels(route, method, status),
                self._seconds.labels(route, method),
                self._received.labels(route),
                self._sent.labels(route),
            )
        series[0].inc()
        series[1].observe(seconds)
        series[2].inc(received_bytes)
        series[3].inc(sent_bytes)

    def chunk_failed(self, code: str) -> None:
        """Count a chunk that could not be stored or read, by the error's code."""
        self._chunk_errors.labels(code).inc()

    def render(self, usage: DiskUsage | None) -> bytes:
        """All counters in Prometheus' text format; `usage` is None if the disk does not say."""
        if usage is None:
            self._disk.clear()
            return generate_latest(self._registry)
        self._disk.labels("total").set(usage.total_bytes)
        self._disk.labels("free").set(usage.free_bytes)
        self._disk.labels("reserve").set(usage.reserve_bytes)
        return generate_latest(self._registry)
