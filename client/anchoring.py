"""Giving uploads their names, also those that took so long that the cluster has moved on under them. Pure but for its calls.

A commit says what its chunks are anchored to (`client.cluster.Anchor`). If that no longer holds, because data moves to other
nodes or garbage collection has gone on by more than an epoch, the node refuses it as stale. The chunks are then touched under a
new anchor, which brings them to the nodes that count now and protects them again, and the commit is repeated as the same
write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from client.catalog import Catalog, Commit
from client.errors import StaleAnchor, StoreError
from client.manifest import Ref
from client.record import ObjectInfo, ObjectRecord
from client.upload import ChunkUploader

__all__ = ["RefsOf", "commit", "commit_many"]

# All references of a record, those of its manifests included.
RefsOf = Callable[[ObjectRecord], Iterable[Ref]]
# Each turn means that a whole epoch went by while the chunks were touched.
_MAX_TURNS = 8


def commit(catalog: Catalog, write: Commit, uploader: ChunkUploader, *, refs_of: RefsOf) -> ObjectInfo:
    """What `Catalog.commit` gives for an upload of `uploader`.

    Raises
    ------
    NotEnoughReplicas
        Its chunks had to be touched again, and too few nodes hold some of them.
    StaleAnchor
        The cluster changes faster than the chunks can be touched.
    StoreError
        What `Catalog.commit` raises.
    """
    for turn in range(_MAX_TURNS):
        try:
            return catalog.commit(replace(write, proof=uploader.anchor))
        except StaleAnchor:
            if turn == _MAX_TURNS - 1:
                raise
        uploader.anchor_again(refs_of(write.record))
    raise AssertionError("the last turn returns or raises")


def commit_many(
    catalog: Catalog, writes: Sequence[Commit], uploader: ChunkUploader, *, refs_of: RefsOf
) -> list[ObjectInfo | StoreError]:
    """What `Catalog.commit_many` gives for uploads of `uploader`; see `commit`."""
    outcomes: dict[int, ObjectInfo | StoreError] = {}
    left = list(range(len(writes)))
    for turn in range(_MAX_TURNS):
        anchored = [replace(writes[index], proof=uploader.anchor) for index in left]
        outcomes.update(zip(left, catalog.commit_many(anchored), strict=True))
        left = [index for index in left if isinstance(outcomes[index], StaleAnchor)]
        if not left or turn == _MAX_TURNS - 1:
            break
        uploader.anchor_again(ref for index in left for ref in refs_of(writes[index].record))
    return [outcomes[index] for index in range(len(writes))]
