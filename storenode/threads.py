"""Where the node crosses from asyncio into threads: the only place.

Theory of operation
-------------------
All code that blocks (disk, metadata, the client's transfers) runs in one of a few bounded pools, each for one kind of
waiting. Work waits only for pools further down this list, across nodes too, so no pool can ever wait for itself:

    gateway   uploads and verified reads of whole objects; waits for chunk requests to any node
    tee       forwards a chunk to another node; waits for that node's disk pool
    disk      chunk files
    batch     chunk files, many as one durable group, which must not take the threads of those who read one
    meta      calls of the metadata engine; waits for the engine alone
    watch     the same, but each call waits for changes: they must not take the threads of those who don't

A pool whose queue is full answers `Busy` at once. Nobody waits for a place: a queue in front of a queue only hides how much
is waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from client.errors import Busy
from storenode.config import NodeConfig

__all__ = ["BUSY_RETRY_S", "BoundedPool", "Pools"]

BUSY_RETRY_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class BoundedPool:
    """Threads for one kind of blocking work, with a bound on what is under way or waiting.

    Parameters
    ----------
    name : str
        Of the threads, and in messages.
    max_threads : int
        Calls under way at once.
    max_queue : int
        Calls under way or waiting.
    """

    def __init__(self, name: str, *, max_threads: int, max_queue: int) -> None:
        self.name = name
        self.max_queue = max_queue
        self._executor = ThreadPoolExecutor(max_threads, thread_name_prefix=f"forebay-{name}")
        self._lock = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """Calls under way or waiting."""
        return self._pending

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread.

        If the caller is cancelled, a call that has not begun is dropped. One that has begun goes on without it.

        Raises
        ------
        Busy
            If the queue is full.
        """
        return await asyncio.wrap_future(self._submit(function, *args, **kwargs))

    async def run_to_end(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` as `run` does, but return, even when cancelled, only after the thread has let go of its arguments."""
        submitted = self._submit(function, *args, **kwargs)
        future = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not submitted.cancel():
                with suppress(Exception):
                    await future
            raise

    def close(self) -> None:
        """Drop what waits, wait for what is under way, end the threads."""
        self._executor.shutdown(cancel_futures=True)

    def _submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # Submitting and finishing happen in different threads, and both count.
        with self._lock:
            if self._pending >= self.max_queue:
                raise Busy(
                    f"the {self.name} queue of this node holds {self._pending} calls, its limit", retry_after_s=BUSY_RETRY_S
                )
            self._pending += 1
        try:
            future = self._executor.submit(function, *args, **kwargs)
        except BaseException:
            self._finished()
            raise
        future.add_done_callback(lambda _: self._finished())
        return future

    def _finished(self) -> None:
        with self._lock:
            self._pending -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """All threads of a node's request side."""

    gateway: BoundedPool
    tee: BoundedPool
    disk: BoundedPool
    batch: BoundedPool
    meta: BoundedPool
    watch: BoundedPool

    @classmethod
    def of(cls, config: NodeConfig) -> Pools:
        """The pools with the bounds in `config`."""
        return cls(
            # An object request has one call under way at a time and may have one more to clean up after itself, so those
            # that were admitted are never refused half-way.
            gateway=BoundedPool("gateway", max_threads=config.max_gateway_threads, max_queue=2 * config.max_object_requests),
            tee=BoundedPool("tee", max_threads=config.max_tee_threads, max_queue=config.max_tee_queue),
            disk=BoundedPool("disk", max_threads=config.max_disk_threads, max_queue=config.max_disk_queue),
            batch=BoundedPool("batch", max_threads=config.max_batch_threads, max_queue=config.max_batch_queue),
            meta=BoundedPool("meta", max_threads=config.max_metadata_threads, max_queue=config.max_metadata_queue),
            watch=BoundedPool("watch", max_threads=config.max_watches, max_queue=config.max_watches),
        )

    def all(self) -> tuple[BoundedPool, ...]:
        """Those that wait for others first."""
        return self.gateway, self.tee, self.disk, self.batch, self.meta, self.watch

    def close(self) -> None:
        """End all threads."""
        for pool in self.all():
            pool.close()
