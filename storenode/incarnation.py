"""The next life of the metadata: what has to grow when it begins, and how it begins where a backup was restored.

What was given out in the life before may be known to clients, nodes and files although this metadata does not know of it. So
versions go on far above, and so does the epoch of garbage collection: an upload that began before is not committed after
it, but asks anew for its chunks, which may be gone (`storenode.lineage`, `client.catalog.Anchor`).
"""

from __future__ import annotations

from dataclasses import replace

from client.cluster import Anchor
from client.errors import Conflict
from client.wire import encode_json
from storenode.layouts import ANCHOR_KEY, decode_anchor
from storenode.lineage import CLUSTER_KEY, Lineage, decode_lineage, new_incarnation, require_cluster
from storenode.metastore import MetaStore, Put

__all__ = ["accept_restore", "raised_anchor", "raised_base"]

# More than the life before can have taken unseen, of revisions and of epochs.
BASE_STRIDE = 1 << 32
EPOCH_STRIDE = 1_000_000
_MAX_TURNS = 8


def raised_base(version: int) -> int:
    """A base far above `version`, from which the versions of a new incarnation count."""
    return (version // BASE_STRIDE + 2) * BASE_STRIDE


def raised_anchor(anchor: Anchor) -> Put:
    """The change of the anchor under which no earlier upload may be committed."""
    raised = Anchor(layout=anchor.layout, epoch=anchor.epoch + EPOCH_STRIDE)
    return Put(key=ANCHOR_KEY, value=encode_json(raised.to_json()))


def accept_restore(store: MetaStore) -> Lineage:
    """Begin a new incarnation on metadata that was restored from a backup, and let commits go on; returns the new record."""
    for _ in range(_MAX_TURNS):
        item, anchor_item = store.get_many([CLUSTER_KEY, ANCHOR_KEY])
        lineage, anchor = decode_lineage(item), decode_anchor(anchor_item)
        require_cluster(lineage)
        base = raised_base(lineage.base + store.revision())
        accepted = replace(lineage, incarnation=new_incarnation(), base=base, frozen=None)
        result = store.txn([lineage.unchanged, anchor.unchanged], [accepted.put(), raised_anchor(anchor.anchor)])
        if result.ok:
            return replace(accepted, revision=result.revision)
    raise Conflict(f"the cluster's record changed {_MAX_TURNS} times meanwhile; try again", key=CLUSTER_KEY)
