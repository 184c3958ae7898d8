"""Versions of one key: what a write or a delete does to them. Pure.

Theory of operation
-------------------
A version is a number: ``base`` of the metadata's incarnation (`storenode.lineage`) + the revision of the commit. It stays what
it is: a record that came from another engine, or is put once more, says its version itself.

The newest version of an object, its *head*, lies at the object's key; older ones were moved aside by the writes that
replaced them. The head counts the older ones, so that a write knows what is too many without reading them. They change
only together with their head, in one transaction that compares the head's revision: the count is exact.

A bucket that keeps no versions has heads only, and a delete removes them. Where older versions exist, the head stays as a
tombstone, so that they are found and counted. A bucket's policy may change at any time: each write to a key then removes up to
`MAX_PRUNED` versions more than it has to, until what is kept fits the policy, and `prune_step` does the same for keys that
nobody writes to.

A snapshot of the bucket is a version, its *pin*. It shows of each key the newest version up to there, so that this one is moved
aside by whatever replaces it, and not removed, whatever the policy says. Tombstones are versions like any other in that:
where the newest is one, the snapshot shows no object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from client.errors import MetadataCorrupt
from client.record import ObjectInfo, ObjectRecord
from client.wire import encode_json
from storenode.keyspace import version_of
from storenode.metastore import KeyValue

__all__ = [
    "MAX_PRUNED",
    "Head",
    "Step",
    "decode_json",
    "decode_json_object",
    "decode_older",
    "decode_record",
    "next_step",
    "num_to_look_at",
    "portable",
    "prune_step",
    "version_at",
]

MAX_PRUNED = 64
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest version of a key, perhaps a tombstone.

    Attributes
    ----------
    version : int
        Its number; 0: not known yet, for it is about to be committed.
    older : int
        How many older versions lie aside.
    """

    version: int
    record: ObjectRecord
    older: int

    @classmethod
    def decode(cls, item: KeyValue) -> Head:
        """The head in a metadata item; raises `MetadataCorrupt`, naming the key."""
        value = decode_json_object(item)
        try:
            return cls(
                version=version_at(value, item.mod_revision), record=ObjectRecord.from_json(value), older=int(value["older"])
            )
        except (KeyError, TypeError, ValueError, MetadataCorrupt) as exc:
            raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc!r}", key=item.key) from exc

    def encode(self, *, base: int = 0) -> bytes:
        """The head's value in the metadata. It has the version that it had, or else counts from `base` when it is put."""
        value = {**self.record.to_json(), "older": self.older}
        if self.version:
            value["version"] = self.version
        elif base:
            value["base"] = base
        return encode_json(value)

    def info(self, bucket: str, key: str) -> ObjectInfo:
        """The head as callers see it."""
        return ObjectInfo(bucket=bucket, key=key, version=self.version, record=self.record)


def version_at(value: Mapping[str, Any], revision: int) -> int:
    """The version of what `value` says, if `revision` put it: the one place where a revision becomes a version."""
    version = value.get("version")
    return int(value.get("base", 0)) + revision if version is None else int(version)


def portable(item: KeyValue) -> bytes:
    """A head's value for another engine: it says its version, whatever revision puts it there."""
    value = decode_json_object(item)
    value["version"] = version_at(value, item.mod_revision)
    value.pop("base", None)
    return encode_json(value)


def decode_older(item: KeyValue, *, bucket: str, key: str) -> ObjectInfo:
    """An older version, from where it was moved aside to; raises `MetadataCorrupt`."""
    return ObjectInfo(bucket=bucket, key=key, version=version_of(item.key), record=decode_record(item))


def decode_record(item: KeyValue) -> ObjectRecord:
    """The record of a version, the newest or an older one; raises `MetadataCorrupt`, naming the key."""
    try:
        return ObjectRecord.from_json(decode_json_object(item))
    except MetadataCorrupt as exc:
        raise MetadataCorrupt(f"the record at {item.key!r} can't be read: {exc}", key=item.key) from exc


def decode_json_object(item: KeyValue) -> dict[str, Any]:
    """The JSON object that is the value of a key; raises `MetadataCorrupt`, naming the key."""
    value = decode_json(item)
    if not isinstance(value, dict):
        raise MetadataCorrupt(f"the record at {item.key!r} is no JSON object", key=item.key)
    return value


def decode_json(item: KeyValue) -> Any:
    """The JSON that is the value of a key; raises `MetadataCorrupt`, naming the key."""
    try:
        # What `json.loads` does in the end, without its guesses at the encoding: every lookup comes by here.
        text = item.value.decode()
        value, end = _JSON.raw_decode(text)
        if end != len(text):
            raise ValueError(f"it goes on after {end} characters")
    except ValueError as exc:
        raise MetadataCorrupt(f"the record at {item.key!r} is no JSON: {exc}", key=item.key) from exc
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one transaction does to the versions of a key.

    Attributes
    ----------
    head : Head or None
        What lies at the object's key afterwards (a new one does not know its version yet); None: nothing.
    aside : bool
        Whether the head of before becomes an older version.
    pruned : tuple of int
        Older versions that are removed.
    """

    head: Head | None
    aside: bool
    pruned: tuple[int, ...]


def num_to_look_at(head: Head | None, *, keep: int, pins: Sequence[int]) -> int:
    """How many of the oldest versions of a key, those of before, the next step has to know; 0 for most."""
    # One may be moved aside. And one more is looked at, which tells until when the one before it was the newest.
    excess = head.older + (keep > 0) - keep if head is not None else 0
    return 0 if excess <= 0 else min(excess, MAX_PRUNED + len(pins)) + 1


def next_step(
    head: Head | None, *, record: ObjectRecord, keep: int, pins: Sequence[int] = (), oldest: Sequence[int] = ()
) -> Step:
    """How `record`, a tombstone for a delete, becomes the newest version of a key.

    Parameters
    ----------
    head : Head or None
        The newest version so far.
    keep : int
        How many older versions the bucket keeps.
    pins : sequence of int
        The versions of the bucket's snapshots, each below the one that this step will make.
    oldest : sequence of int
        The oldest versions, in order: `num_to_look_at` of them, or all if there are fewer.
    """
    aside = head is not None and (keep > 0 or any(pin >= head.version for pin in pins))
    total = aside + (head.older if head is not None else 0)
    pruned = _prunable(head, excess=total - keep, pins=pins, oldest=oldest)
    older = total - len(pruned)
    if record.tombstone and keep == 0 and older == 0:
        return Step(head=None, aside=aside, pruned=pruned)
    return Step(head=Head(version=0, record=record, older=older), aside=aside, pruned=pruned)


def prune_step(head: Head, *, keep: int, pins: Sequence[int], oldest: Sequence[int]) -> Step:
    """What can go of a key that is not written to; parameters as for `next_step`."""
    pruned = _prunable(head, excess=head.older - keep, pins=pins, oldest=oldest)
    older = head.older - len(pruned)
    if head.record.tombstone and keep == 0 and older == 0:
        return Step(head=None, aside=False, pruned=pruned)
    return Step(head=replace(head, older=older), aside=False, pruned=pruned)


def _prunable(head: Head | None, *, excess: int, pins: Sequence[int], oldest: Sequence[int]) -> tuple[int, ...]:
    """Those of the `excess` oldest versions that no snapshot shows, `MAX_PRUNED` at most."""
    if head is None or excess <= 0:
        return ()
    # What is newer than the last one known is the head, if that one is the last there is.
    ends = [*oldest[1:], *([head.version] if len(oldest) == head.older else [])]
    candidates = list(zip(oldest, ends, strict=False))[:excess]
    free = [version for version, end in candidates if not any(version <= pin < end for pin in pins)]
    return tuple(free[:MAX_PRUNED])
