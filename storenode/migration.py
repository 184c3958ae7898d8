"""A cluster's metadata out of one engine and into another (or out of a backup into a new one).

Theory of operation
-------------------
An export is all keys as they stood at one revision, without those that live by a lease (nodes, markers of writes, owners of
jobs) and those that speak of revisions (`held/`, `swept/`): nodes make them anew. If commits are frozen before that revision,
the export has everything that was ever acknowledged; else it is a backup.

An import begins with a key of its own in the empty engine, and ends with one transaction that puts the cluster's record in its
place. Before that no node starts on the engine. An import that was broken off is begun again with the same file, and
puts everything once more. The new record has an incarnation of its own and a base above all versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.errors import Conflict, Misconfigured
from client.wire import encode_json
from storenode.archive import Header, Summary, read_items, verify, write_archive
from storenode.buckets import Bucket
from storenode.history import decode_json_object, portable
from storenode.incarnation import raised_anchor, raised_base
from storenode.keyspace import BUCKETS, after, is_object_key
from storenode.layouts import ANCHOR_KEY, decode_anchor
from storenode.lineage import CLUSTER_KEY, Lineage, decode_lineage, new_incarnation, read_lineage, require_cluster
from storenode.metastore import Compare, Delete, KeyValue, MetaStore, Put, Txn, num_fitting, txn_bytes

__all__ = ["Imported", "export_metadata", "import_metadata"]

IMPORTING_KEY = "importing"
# What speaks of revisions of the engine that it lies in, or of sweeps by them.
_OF_THE_ENGINE = ("held/", "swept/")
_END = chr(0x10FFFF)
_PAGE = 512
_MAX_PENDING = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was imported, as which incarnation, and whether that had been done before."""

    summary: Summary
    lineage: Lineage
    repeated: bool


def export_metadata(store: MetaStore, path: Path, *, on_items: Callable[[int], None] = lambda count: None) -> Summary:
    """Write all that outlives the engine to a file.

    Raises
    ------
    CursorExpired
        If the engine's history was compacted meanwhile; try again.
    MetadataCorrupt
        A record can't be read.
    """
    revision = store.revision()
    (item,) = store.range(CLUSTER_KEY, after(CLUSTER_KEY), limit=1, revision=revision).items or (None,)
    lineage = decode_lineage(item)
    require_cluster(lineage)
    header = Header(
        cluster_id=lineage.cluster_id,
        created_s=lineage.created_s,
        incarnation=lineage.incarnation,
        revision=revision,
        top=lineage.base + revision,
        frozen=lineage.frozen is not None and not lineage.went_back,
    )
    return write_archive(path, header, _portable_items(store, revision=revision, on_items=on_items))


def import_metadata(store: MetaStore, path: Path, *, on_items: Callable[[int], None] = lambda count: None) -> Imported:
    """Make an engine that holds nothing the cluster's; repeatable with the same file until it has succeeded, and after.

    Raises
    ------
    MetadataCorrupt, Misconfigured
        The file is not whole, or the engine holds something else. Nothing was written.
    MetadataUnavailable
        The engine failed in the middle; repeat the import.
    """
    summary = verify(path)
    lineage = read_lineage(store)
    if lineage.cluster_id:
        if lineage.imported == summary.digest:
            return Imported(summary=summary, lineage=lineage, repeated=True)
        raise Misconfigured(
            f"the engine holds cluster {lineage.cluster_id} already, and an import goes into an empty one; "
            "name another file or another prefix"
        )
    importing = _begin(store, summary)
    pending: list[Put] = []
    for key, value in read_items(path):
        if key == ANCHOR_KEY:
            anchor = KeyValue(key=key, value=value, create_revision=0, mod_revision=0, lease=None)
            pending.append(raised_anchor(decode_anchor(anchor).anchor))
        else:
            pending.append(Put(key=key, value=value))
        if len(pending) == _MAX_PENDING:
            _put(store, pending, importing)
            on_items(len(pending))
            pending.clear()
    _put(store, pending, importing)
    on_items(len(pending))
    header = summary.header
    lineage = Lineage(
        cluster_id=header.cluster_id,
        created_s=header.created_s,
        incarnation=new_incarnation(),
        # Where the old metadata lived on after the export, it may have given out more than the export knows of.
        base=header.top if header.frozen else raised_base(header.top),
        imported=summary.digest,
    )
    # Last, and in one step: with it the engine is a cluster's.
    if not store.txn([importing, lineage.unchanged], [lineage.put(), Delete(key=IMPORTING_KEY)]).ok:
        raise _interfered()
    return Imported(summary=summary, lineage=lineage, repeated=False)


def _portable_items(store: MetaStore, *, revision: int, on_items: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
    start, more = "", True
    while more:
        page = store.range(start, _END, limit=_PAGE, revision=revision)
        for item in page.items:
            if item.lease is None and item.key != CLUSTER_KEY and not item.key.startswith(_OF_THE_ENGINE):
                yield item.key, _portable(item)
        on_items(len(page.items))
        more = page.more
        if page.items:
            start = after(page.items[-1].key)


def _portable(item: KeyValue) -> bytes:
    """The value, with the versions in it said that the engine's revisions tell here."""
    if is_object_key(item.key):
        return portable(item)
    return Bucket.decode(item).put().value if item.key.startswith(BUCKETS) else item.value


def _begin(store: MetaStore, summary: Summary) -> Compare:
    """Take the empty engine, or take up the import that was begun in it; returns what then holds until the import's end."""
    found = store.get(IMPORTING_KEY)
    if found is not None:
        if decode_json_object(found).get("blake3") != summary.digest:
            raise Misconfigured(
                "another file's import was broken off in this engine; finish it with that file, or name an engine that is empty"
            )
        return Compare(key=IMPORTING_KEY, mod_revision=found.mod_revision)
    others = store.range("", _END, limit=1).items
    if others:
        raise Misconfigured(f"the engine is not empty: it holds {others[0].key!r} and no cluster; name another one")
    result = store.txn(
        [Compare(key=IMPORTING_KEY, mod_revision=0)],
        [Put(key=IMPORTING_KEY, value=encode_json({"blake3": summary.digest, "cluster_id": summary.header.cluster_id}))],
    )
    if not result.ok:
        raise _interfered()
    return Compare(key=IMPORTING_KEY, mod_revision=result.revision)


def _put(store: MetaStore, puts: list[Put], importing: Compare) -> None:
    txns = [Txn(compares=[importing], changes=[put]) for put in puts]
    while txns:
        count = num_fitting((1, txn_bytes(txn)) for txn in txns)
        if not all(result.ok for result in store.txn_many(txns[:count])):
            raise _interfered()
        txns = txns[count:]


def _interfered() -> Conflict:
    return Conflict(
        "another import into this engine is under way or was just completed; see which, and repeat this one if need be"
    )
