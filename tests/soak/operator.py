"""What an operator does while things break: scrubs, changes of the layout, collecting garbage, looking at what is referred to.

Its calls fail as anybody's do; an operator tries again, or does without.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from client.client import Client
from client.errors import AllReplicasFailed, InvalidRequest, StoreError
from client.record import ObjectInfo
from tests.soak.clients import BUCKET
from tests.soak.history import History

__all__ = ["Operator"]

LAYOUT = "/v1/admin/layout"
GC = "/v1/admin/gc"
POLL_S = 1.0


class Operator:
    """One operator.

    Parameters
    ----------
    client : Client
        Its own.
    """

    def __init__(self, client: Client, history: History) -> None:
        self._client = client
        self._history = history
        self.leaving: str | None = None  # The node that is drained, then removed, then added back.

    def scrub(self, node_id: str) -> None:
        """Have a node look at all its copies, unless it does so already."""
        with suppress(StoreError):
            self._client.admin("POST", "/v1/admin/scrub", node_id=node_id)

    def change(self, kind: str, node_id: str, **given: Any) -> bool:
        """`forebay node` drain, add, weight or zone; whether it was done."""
        wish = {"change": kind, "nodes": [node_id], "force": False, "dry_run": False, **given}
        try:
            self._client.admin("POST", LAYOUT, json=wish)
        except InvalidRequest as error:
            self._history.event(f"{kind} {node_id} is refused: {error}")
            self._history.count("layout change refused")
        except StoreError as error:
            self._history.failed("layout change", error)
        else:
            self._history.count("layout change ok")
            return True
        return False

    def replace(self, node_id: str) -> None:
        """Drain a node, remove it once it is empty, and add it back, one step with each `proceed`. One node at a time."""
        self.leaving = self.leaving or node_id

    def proceed(self) -> None:
        """The next step of replacing a node, if it can be made."""
        if self.leaving is None:
            return
        try:
            nodes = {node["node_id"]: node["state"] for node in self._client.admin("GET", LAYOUT)["nodes"]}
        except StoreError as error:
            self._history.failed("layout", error)
            return
        state = nodes.pop(self.leaving, "down")
        # Zones may leave too few without it. Nothing else that force would accept is the case then.
        if state == "up" and not {"draining", "drained", "spare"} & set(nodes.values()):
            self.change("drain", self.leaving, force=True)
        elif state == "drained" and self.change("remove", self.leaving):
            self._history.event(f"{self.leaving} was emptied and removed")
            self._history.count("node removed")
        elif state == "spare" and self.change("add", self.leaving):
            self._history.event(f"{self.leaving} was added back")
            self._history.count("node added back")
            self.leaving = None

    def collect(self) -> int | None:
        """`forebay gc`; the epoch at which all that is garbage now will be gone, None if it could not be asked for."""
        try:
            return int(self._client.admin("POST", GC)["epoch"])
        except StoreError as error:
            self._history.failed("gc", error)
            return None

    def await_collection(self, *, deadline_s: float) -> None:
        """Wait until all that is garbage now is gone from every node."""
        end_s, epoch = time.monotonic() + deadline_s, self.collect()
        while epoch is None or not self._is_swept(epoch):
            if time.monotonic() > end_s:
                found = self._client.admin("GET", GC)
                self._history.violation(f"after {deadline_s:.0f} s without faults epoch {epoch} is not swept: {found}")
                return
            time.sleep(POLL_S)
            epoch = self.collect() if epoch is None else epoch

    def _is_swept(self, epoch: int) -> bool:
        try:
            found = self._client.admin("GET", GC)
        except StoreError:
            return False
        return all(node["epoch"] >= epoch for node in found["nodes"].values())

    def referred(self) -> dict[tuple[int, bytes], ObjectInfo] | None:
        """Each chunk that an object needs now, as (partition, chunk id), and the object; None if that can't be told."""
        found: dict[tuple[int, bytes], ObjectInfo] = {}
        try:
            for info in self._client.walk(BUCKET):
                # A manifest that nobody has is told of before it is asked for; what it refers to is not known then.
                with suppress(AllReplicasFailed):
                    found.update(((ref.partition, ref.id), info) for ref in self._client.reader(info).refs())
        except StoreError as error:
            self._history.failed("look at all records", error)
            return None
        return found

    def is_current(self, info: ObjectInfo) -> bool:
        """Whether an object is still the one that it was, as far as can be told."""
        try:
            return self._client.stat(BUCKET, info.key).version == info.version
        except StoreError:
            return False

    def wanted(self) -> set[tuple[str, int, bytes]] | None:
        """Each copy to which a record refers, as (node id, partition, chunk id); None if that can't be told now."""
        try:
            layouts = self._client.cluster.refresh().layouts
            return {
                (node_id, ref.partition, ref.id)
                for info in self._client.walk(BUCKET, versions=True)
                for ref in self._client.reader(info).refs()
                for node_id in layouts.holders(ref.partition, count=info.record.replicas)
            }
        except StoreError:
            return None

    def settle(self, *, deadline_s: float) -> None:
        """Give every node its full share again, and wait until no older layout is needed any more."""
        end_s, self.leaving = time.monotonic() + deadline_s, None
        while not self._is_settled():
            if time.monotonic() > end_s:
                found = self._client.admin("GET", LAYOUT)
                self._history.violation(f"after {deadline_s:.0f} s without faults older layouts are still needed: {found}")
                return
            time.sleep(POLL_S)

    def _is_settled(self) -> bool:
        try:
            found = self._client.admin("GET", LAYOUT)
        except StoreError:
            return False
        for node in found["nodes"]:
            if node["state"] in ("draining", "drained", "spare"):
                self.change("add", node["node_id"])
            elif node["weight"] != 1.0:
                self.change("weight", node["node_id"], weight=1.0)
        return not found["older"] and all(node["complete"] and node["weight"] == 1.0 for node in found["nodes"])
