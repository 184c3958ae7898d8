"""One page of a bucket's listing: ordered, complete at one revision, and no longer than asked for.

Theory of operation
-------------------
The first page fixes the revision, and the cursor carries it together with the place where the next page begins, so all
pages show one moment. A node keeps nothing between pages. When the engine has compacted that revision away, the next page
is `CursorExpired`.

With a delimiter, keys that agree up to its first occurrence behind the prefix become one entry, and the walk goes on at the
successor of what they have in common. So a page costs about as many reads as it has entries, however many keys lie below.

Tombstones are met but not shown (unless versions are asked for), and a common prefix appears only if something below it is
shown. A page therefore looks at `MAX_LOOKED_AT` keys at most, and may come out short, even empty, with a cursor.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from client.catalog import Listing
from client.checksum import xxh3
from client.errors import CursorExpired, InvalidRequest
from client.names import check_prefix
from client.record import ObjectInfo
from storenode.history import Head, decode_older
from storenode.keyspace import after, objects_of, version_key, versions_of
from storenode.metastore import MetaStore, prefix_end
from storenode.snapshots import version_shown

__all__ = ["MAX_LOOKED_AT", "ListQuery", "list_page"]

MAX_LOOKED_AT = 20_000
_MAX_FETCHED = 512
# Read first behind a common prefix, where the next one may begin at once; doubles while keys go on.
_FETCHED_AFTER_SKIP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What is listed, of which incarnation of the metadata, and up to which version `at`; the same for all pages."""

    bucket: str
    prefix: str
    delimiter: str
    versions: bool
    incarnation: str
    at: int | None = None

    def common_prefix(self, key: str) -> str | None:
        """What `key` is folded into, None if it is listed itself."""
        if not self.delimiter:
            return None
        place = key.find(self.delimiter, len(self.prefix))
        return None if place < 0 else key[: place + len(self.delimiter)]

    @property
    def _at(self) -> tuple[int, ...]:
        return () if self.at is None else (self.at,)

    @property
    def fingerprint(self) -> str:
        """Tells cursors of different listings apart."""
        return f"{xxh3(json.dumps([self.bucket, self.prefix, self.delimiter, self.versions, *self._at]).encode()):016x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a page begins: at `key`, or, where that is given, at its versions below `below`."""

    revision: int | None
    key: str
    below: int | None = None


@dataclass(slots=True, kw_only=True)
class _Page:
    """Entries of the page so far."""

    limit: int
    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.limit - len(self.objects) - len(self.prefixes)


def list_page(meta: MetaStore, query: ListQuery, *, cursor: str | None, limit: int) -> Listing:
    """One page of at most `limit` objects and prefixes.

    Parameters
    ----------
    cursor : str or None
        From the page before.

    Raises
    ------
    InvalidRequest
        If the cursor is not from this listing.
    CursorExpired
        If its revision is gone.
    """
    place = _Place(revision=None, key=query.prefix) if cursor is None else _decode_cursor(cursor, query)
    page = _Page(limit=limit)
    walk = _Walk(meta, query, place)
    rest = _fill(page, walk, query, below=place.below)
    return Listing(
        objects=tuple(page.objects),
        prefixes=tuple(page.prefixes),
        cursor=_encode_cursor(rest, query) if rest is not None else None,
        revision=walk.revision,
    )


def _fill(page: _Page, walk: _Walk, query: ListQuery, *, below: int | None) -> _Place | None:
    """Add entries to `page`; returns where the next one begins, None at the end of the listing."""
    for key, head in walk.heads():
        if walk.num_looked_at > MAX_LOOKED_AT:
            return _Place(revision=walk.revision, key=key)
        info = walk.shown(key, head)
        if info is None or (info.record.tombstone and not query.versions):
            continue
        if page.room == 0:
            return _Place(revision=walk.revision, key=key)
        folded = query.common_prefix(key)
        if folded is not None:
            page.prefixes.append(folded)
            walk.skip(folded)
            continue
        if below is None:
            page.objects.append(info)
            below = head.version
        if query.versions and head.older:
            older = walk.older(key, below=below, limit=page.room + 1)
            shown = older[: page.room]
            page.objects += shown
            if len(shown) < len(older):
                return _Place(revision=walk.revision, key=key, below=shown[-1].version if shown else below)
        below = None
    return None


class _Walk:
    """Reads the newest versions of a bucket in order, all at one revision.

    Attributes
    ----------
    revision : int
        Known once something was read.
    num_looked_at : int
        Keys read so far.
    """

    def __init__(self, meta: MetaStore, query: ListQuery, place: _Place) -> None:
        self._meta = meta
        self._query = query
        self._prefix = objects_of(query.bucket)
        # A cursor is only ever behind the prefix, unless somebody made it up.
        self._start = self._prefix + max(place.key, query.prefix)
        self._end = prefix_end(self._prefix + query.prefix)
        self._at = place.revision
        self.num_looked_at = 0

    @property
    def revision(self) -> int:
        assert self._at is not None, "nothing was read yet"
        return self._at

    def heads(self) -> Iterator[tuple[str, Head]]:
        """Key and newest version of each object from the start on, tombstones included."""
        limit = _MAX_FETCHED
        while True:
            page = self._meta.range(self._start, self._end, limit=limit, revision=self._at)
            self._at = page.revision
            for item in page.items:
                if item.key >= self._start:
                    self._start = after(item.key)
                    self.num_looked_at += 1
                    yield item.key.removeprefix(self._prefix), Head.decode(item)
            if not page.more or self._start >= self._end:
                return
            skipped = page.items and self._start > after(page.items[-1].key)
            limit = _FETCHED_AFTER_SKIP if skipped else min(2 * limit, _MAX_FETCHED)

    def skip(self, prefix: str) -> None:
        """Go on behind all keys that begin with `prefix`."""
        self._start = prefix_end(self._prefix + prefix)

    def shown(self, key: str, head: Head) -> ObjectInfo | None:
        """What is listed under a key: its newest version, or that of the snapshot."""
        at = self._query.at
        if at is None or head.version <= at:
            return head.info(self._query.bucket, key)
        if head.older == 0:
            return None
        return version_shown(self._meta, self._query.bucket, key, at=at, revision=self._at)

    def older(self, key: str, *, below: int, limit: int) -> list[ObjectInfo]:
        """The newest `limit` of the versions of `key` that are older than `below`, newest first."""
        start, end = versions_of(self._query.bucket, key)
        end = min(end, version_key(self._query.bucket, key, below))
        # They are kept oldest first, so that all have to be read to find the newest; no more than `limit` are held.
        newest: deque[ObjectInfo] = deque(maxlen=limit)
        more = True
        while more:
            page = self._meta.range(start, end, limit=_MAX_FETCHED, revision=self._at)
            newest.extend(decode_older(item, bucket=self._query.bucket, key=key) for item in page.items)
            more = page.more
            if page.items:
                start = after(page.items[-1].key)
        return list(reversed(newest))


def _encode_cursor(place: _Place, query: ListQuery) -> str:
    value = [query.fingerprint, place.revision, place.key, place.below, query.incarnation]
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def _decode_cursor(cursor: str, query: ListQuery) -> _Place:
    try:
        fingerprint, revision, key, below, incarnation = json.loads(
            base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        )
        if not isinstance(key, str) or type(revision) is not int or (below is not None and type(below) is not int):
            raise TypeError("fields of the wrong type")
        if revision < 1:
            raise ValueError("revisions begin at 1")
    except (ValueError, TypeError) as exc:
        raise InvalidRequest(f"cursor {cursor[:40]!r} is none of ours: take it from the page before, unchanged") from exc
    check_prefix(key)
    if fingerprint != query.fingerprint:
        raise InvalidRequest("the cursor is from another listing: keep bucket, prefix, delimiter and versions as they were")
    if incarnation != query.incarnation:
        raise CursorExpired("the listing began on metadata that has been replaced since; list again from the start")
    return _Place(revision=revision, key=key, below=below)
