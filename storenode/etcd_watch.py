"""What a watch gathers from etcd's messages, and how it comes to know up to where nothing is missing. Pure.

Theory of operation
-------------------
etcd says nothing about revisions without events, and its word about a watcher's progress may run ahead of the events in the
releases that are in use. But the events of one watcher come in the order of their revisions: whoever sees one at revision
r has seen all before r, and all of r too unless the message is a piece of a longer one. So a watch asks for everything from the
mark to the end of its range, drops what is before its start (little: what is busy sorts late among the keys of a cluster), and
if it is far behind, or must not wait, the mark is put, whose event then says how far it is.

It asks for events from `after` on, not from the next revision, and drops those: etcd refuses a watch only from before the
revision that it has compacted, but at that revision it no longer has the deletions.
"""

from __future__ import annotations

from storenode.etcd_wire import Json, Keyspace
from storenode.metastore import MAX_ANSWER_BYTES, Event, Watch, encode_key

__all__ = ["Gathering"]


class Gathering:
    """The events of a range after a revision.

    Attributes
    ----------
    certain : int
        Nothing is missing up to this revision.
    """

    def __init__(self, keyspace: Keyspace, start: str, end: str, *, after: int, limit: int) -> None:
        self._keyspace = keyspace
        self._start, self._end = encode_key(start), encode_key(end)
        self._limit = limit
        self._events: list[Event] = []
        self._size_bytes = 0
        self.certain = after

    def add(self, message: Json) -> bool:
        """Take a message; returns whether there is enough to answer with."""
        newest = 0
        for found in message.get("events", ()):
            event = self._keyspace.event(found)
            newest = event.revision
            key = event.key.encode()
            # Of the messages before this one nothing is left out, so what is not after `certain` is not after the beginning
            # either, or it belongs to the revision that a piece was cut in.
            if key and self._start <= key < self._end and newest > self.certain:
                self._events.append(event)
                self._size_bytes += len(key) + len(event.value or b"")
        is_piece = bool(message.get("fragment"))
        self.certain = max(self.certain, newest - 1 if is_piece else newest)
        if not self._events or self._events[0].revision > self.certain:
            return False
        return not is_piece or len(self._events) >= self._limit or self._size_bytes >= MAX_ANSWER_BYTES

    def watched(self) -> Watch:
        """Whole revisions, as many as the limits allow."""
        kept: list[Event] = []
        size_bytes = 0
        for event in self._events:
            if event.revision > self.certain:
                break
            if (len(kept) >= self._limit or size_bytes >= MAX_ANSWER_BYTES) and event.revision != kept[-1].revision:
                return Watch(events=tuple(kept), revision=kept[-1].revision)
            kept.append(event)
            size_bytes += len(event.key.encode()) + len(event.value or b"")
        return Watch(events=tuple(kept), revision=self.certain)
