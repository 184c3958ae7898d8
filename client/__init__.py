"""The client of Forebay, and the contract that it shares with the storage node.

A PUT flows down: `client` (what applications call) → `objects` (names and policies) → `upload` (chunks, acknowledgements) →
`chunks` (one chunk, one node) → `transport`, `connections` and `http1` (HTTP) and at last `http_catalog` (the commit of the
name). A GET flows `objects` → `reader` (ranges to chunks) → `replica` (verified, next replica on failure) → `chunks` →
`transport`. Many small objects at once go by `batch_writer` and `batch`.

Built on that: `transfer` and `sync` move files and folders (`folder`, `parallel`), `verify` counts copies where they lie
(`health`), `replication` changes how many there are.

Pure, shared by both sides: `errors`, `names`, `checksum`, `placement`, `manifest`, `record`, `wire`. The node builds the same
`objects.ObjectStore` over its own catalog, so replicated write and verified read exist once. The command line is in `cli`.

This package imports neither storenode nor loader.
"""

from __future__ import annotations

__forebay__ = "client"

from client.siblings import check_siblings

check_siblings()

from client.catalog import Listing
from client.client import Client
from client.errors import StoreError
from client.record import BucketPolicy, ObjectInfo

__all__ = ["BucketPolicy", "Client", "Listing", "ObjectInfo", "StoreError"]
