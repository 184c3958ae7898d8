"""The manifests that were read last, for all readers of a client: their ids are those of their bytes, so they never change."""

from __future__ import annotations

import threading
from collections import OrderedDict

from client.manifest import Manifest

__all__ = ["ManifestCache"]

_MAX_MANIFESTS = 64  # Of at most 1,024 entries each.


class ManifestCache:
    """Manifests by the id of their chunk. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._manifests: OrderedDict[bytes, Manifest] = OrderedDict()

    def get(self, chunk_id: bytes) -> Manifest | None:
        """The manifest, if it is kept."""
        with self._lock:
            manifest = self._manifests.get(chunk_id)
            if manifest is not None:
                self._manifests.move_to_end(chunk_id)
        return manifest

    def keep(self, chunk_id: bytes, manifest: Manifest) -> None:
        """Keep a manifest, and let the one go that was used longest ago."""
        with self._lock:
            self._manifests[chunk_id] = manifest
            if len(self._manifests) > _MAX_MANIFESTS:
                self._manifests.popitem(last=False)
