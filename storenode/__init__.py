"""The storage node: an HTTP API over chunk files and metadata, and the work that keeps every replica whole.

A request comes over one of the `connections` (`protocol`) and enters by `app`; it may end early (`exchange`). Chunks go to
`chunks` (raw ASGI over `chunkstore`), names and records to `records`, objects by plain HTTP to `objects`, the rest to `admin`
(FastAPI). Object routes run the client's upload and verified read over `catalog`, which keeps records in a `metastore`. In the
background `membership` holds the node's lease, `follower` makes missing copies from committed records, `scrub` re-hashes.
`server` builds one node from its configuration; `embedded` runs several on one machine.
"""

from __future__ import annotations

__forebay__ = "storenode"

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "client" / "siblings.py"))["check_siblings"]()
