"""What became of each write, remembered for its repeats.

Theory of operation
-------------------
Whoever loses the reply to a write can't know whether it happened, so it asks again, perhaps through another node, while
the first request may still be on its way. The write id makes all these requests one write: the transaction that decides it
also puts a marker, and compares that there is none. So a write happens once, and every later request gets the first answer.

A refusal is an answer too. If a repeat were told "precondition failed" and left no marker, the first request, held up
somewhere and arriving late, could find that the condition now holds and write after all, unknown to its sender.

Markers are leased, so they go by themselves. A lease per write would double the engine's work, therefore a catalog shares
one among the writes of a window: granted for twice the marker's shortest life, used for the first half of it and never
renewed. A marker lives for one to two times ``ttl_s``, which must be longer than a request can be on its way.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from client.catalog import Commit
from client.errors import InvalidRequest, MetadataCorrupt, StoreError, from_problem, to_problem
from client.record import ObjectInfo, ObjectRecord
from client.wire import encode_json
from storenode.history import version_at
from storenode.keyspace import write_key
from storenode.metastore import KeyValue, MetaStore, Put

__all__ = ["Markers"]


class Markers:
    """Makes and reads markers. Thread-safe.

    Parameters
    ----------
    meta : MetaStore
        Where they lie.
    ttl_s : float
        Shortest life of a marker.
    clock : callable
        Monotonic seconds.
    """

    def __init__(self, meta: MetaStore, *, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._meta = meta
        self._ttl_s = ttl_s
        self._clock = clock
        # Held while a lease is granted, so that a window has one lease however many writes begin it together.
        self._lock = threading.Lock()
        self._lease = 0
        self._window_ends_s = float("-inf")

    def put(self, write: Commit, *, base: int = 0, refusal: StoreError | None = None) -> Put:
        """The change that marks `write` as done, with a version that counts from `base`, or as refused."""
        value: dict[str, Any] = {"bucket": write.bucket, "key": write.key, "record": write.record.to_json()}
        if base:
            value["base"] = base
        if refusal is not None:
            value["refusal"] = to_problem(refusal)
        return self.mark(write_key(write.record.write_id), value)

    def mark(self, key: str, value: Mapping[str, Any]) -> Put:
        """The change that keeps `value` at `key` for as long as markers live."""
        return Put(key=key, value=encode_json(value), lease=self._current_lease())

    def answer(self, marker: KeyValue, write: Commit) -> ObjectInfo | StoreError:
        """What the first request of `write` made, read from its marker, or the error that it was refused with.

        An `InvalidRequest` if the write id was used for another write, and `MetadataCorrupt` if the marker does not decode.
        """
        try:
            value = json.loads(marker.value)
            first = Commit(bucket=value["bucket"], key=value["key"], record=ObjectRecord.from_json(value["record"]))
            refusal = value.get("refusal")
        except (ValueError, KeyError, TypeError, MetadataCorrupt) as exc:
            return MetadataCorrupt(f"the marker at {marker.key!r} can't be read: {exc!r}", key=marker.key)
        if (first.name, first.record.tombstone) != (write.name, write.record.tombstone):
            was, now = ("delete" if w.record.tombstone else "put" for w in (first, write))
            return InvalidRequest(
                f"write id {write.record.write_id} asks to {now} {write.name}, but was used to {was} {first.name}; "
                "take a new id for each write",
                key=write.name,
            )
        if refusal is not None:
            return from_problem(refusal, node_id="")
        # The marker was put by the transaction that put the record, so both have the same version.
        version = version_at(value, marker.mod_revision)
        return ObjectInfo(bucket=write.bucket, key=write.key, version=version, record=first.record)

    def renew(self) -> None:
        """Take a new lease for the next marker, because the engine has lost the one in use."""
        with self._lock:
            self._window_ends_s = float("-inf")

    def _current_lease(self) -> int:
        with self._lock:
            now_s = self._clock()
            if now_s >= self._window_ends_s:
                # The window counts from before the call: the lease can only live longer than this clock believes.
                self._lease = self._meta.grant(2 * self._ttl_s)
                self._window_ends_s = now_s + self._ttl_s
            return self._lease
