"""Copies that records refer to and that belong elsewhere by now: which they are, and when they may be given up.

Theory of operation
-------------------
After a change of the layout, nodes are left with copies that the layout places elsewhere. The sweep of garbage collection meets
them, for it looks at all copies and all records (`storenode.collector`). One is given up only if

- there is one layout: as long as older ones are not retired, reads may still need it;
- every node that the layout names for it has re-hashed its own copy where it lies, just now, and found it sound. What they said
  at any other time is not asked for;
- after that the layout is still the current one;
- nobody has relied on it lately, by its tag. Should this node be given the chunk again, its follower tags the copy that it
  counts, and uploads tag those that they are told of. Tagging and removing exclude each other.

A draining node says how much is left on its disk; with nothing left it is drained. A node that no layout names (a spare, one
that was removed and came back) gives nothing up: its copies count for nobody, and may be all that is left of something.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from client.errors import StoreError
from client.placement import Layout, Layouts
from client.wire import decode_json, encode_json
from storenode.held import Holdings
from storenode.layouts import read_layouts
from storenode.marks import Chunk
from storenode.metastore import MetaStore
from storenode.outage import Outages
from storenode.pace import Pace
from storenode.repair import Copies

__all__ = ["Surplus"]

log = logging.getLogger(__name__)

# A call re-hashes a batch (`BATCH_CHUNKS`): at 64 MiB a chunk, and so slow a disk, this is how long it may take.
_VERIFY_TIMEOUT_S = 120.0


class Surplus:
    """Judges this node's copies. For one thread at a time.

    Parameters
    ----------
    store : MetaStore
        The layouts.
    copies : Copies
        This node's disk and its peers.
    holdings : Holdings
        Where this node says what is left.
    pace : Pace
        How fast others are asked to re-hash.
    """

    def __init__(self, store: MetaStore, *, copies: Copies, holdings: Holdings, pace: Pace) -> None:
        self._store = store
        self._copies = copies
        self._holdings = holdings
        self._pace = pace
        self._outages = Outages(log)

    def layout(self) -> Layout | None:
        """The layout by which copies are judged; None while nothing may be given up."""
        known = read_layouts(self._store)
        if known is None or known.layouts.older:
            return None
        current = known.layouts.current
        return current if self._copies.node_id in {node.id for node in current.nodes} else None

    def is_misplaced(self, layout: Layout, chunk: Chunk, *, copies: int) -> bool:
        """Whether a chunk of which records ask for so many copies belongs elsewhere."""
        return copies > 0 and self._copies.node_id not in layout.replicas(chunk[0], count=copies)

    def gives_up_all(self, layout: Layout) -> bool:
        """Whether the layout gives this node nothing."""
        return self._copies.node_id not in {node.id for node in layout.active}

    def replaced(self, layout: Layout, misplaced: Mapping[Chunk, int], *, size_bytes: int) -> list[Chunk]:
        """Those of some misplaced copies that may be given up now.

        Parameters
        ----------
        misplaced : mapping of (int, bytes) to int
            Chunks, and how many copies records ask for.
        size_bytes : int
            Of all of them.
        """
        self._pace.take(size_bytes)
        holders = {chunk: layout.replicas(chunk[0], count=copies) for chunk, copies in misplaced.items()}
        sound: set[tuple[str, Chunk]] = set()
        for node_id in sorted({node_id for named in holders.values() for node_id in named}):
            asked = [chunk for chunk, named in holders.items() if node_id in named]
            sound |= {(node_id, chunk) for chunk in self._found_sound(node_id, asked)}
        known = read_layouts(self._store)
        if known is None or known.layouts != Layouts(current=layout):
            return []  # Others are the holders now.
        return [chunk for chunk, named in holders.items() if named and all((node_id, chunk) in sound for node_id in named)]

    def tell(self, layout: Layout, *, left: int) -> None:
        """Say how many copies are left that this node is to give up."""
        self._holdings.left_over(left, layout=layout.version)

    def _found_sound(self, node_id: str, chunks: list[Chunk]) -> list[Chunk]:
        """Those of `chunks` that a node has re-hashed and found sound; none if it does not answer."""
        what = f"having node {node_id} re-hash what is to be given up for its copies"
        body = encode_json({"chunks": [[partition, chunk_id.hex()] for partition, chunk_id in chunks]})
        try:
            answer = self._copies.transport.request(
                "POST",
                self._copies.cluster.endpoint(node_id),
                "/v1/chunks:verify",
                headers={"content-type": "application/json"},
                body=body,
                timeout_s=_VERIFY_TIMEOUT_S,
                node_id=node_id,
            )
            status = decode_json(answer.body)["status"]
            found = [chunk for chunk, word in zip(chunks, status, strict=True) if word == "ok"]
        except StoreError as error:
            self._outages.failed(what, error)
            return []
        except (KeyError, TypeError, ValueError) as exc:
            log.warning("%s: its answer can't be understood: %r", what, exc)
            return []
        self._outages.succeeded(what)
        return found
