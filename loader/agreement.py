"""How the ranks of a run agree which lanes each of them reads, without a collective: through the store.

Theory of operation
-------------------
All ranks of a run have an id in common that no other start of the job has. Below ``KEY.lanes/RUN/DIGEST-W/``, KEY being the
dataset's, DIGEST its digest and W the number of ranks, they keep small objects, each created only if it is not there yet:

* ``rank-R``: where rank R runs, as metadata. It removes it once all are known.
* ``hosts``: the host of each rank; rank 0 makes it when it has seen all of them, and the first order before that. A rank that
  finds itself elsewhere, because the launcher has started it again under the same id, puts its entry right.
* ``epoch-E``: the order of the lanes in epoch E (`loader.placed`). Whoever begins the epoch first computes it, from the hosts
  and the layout as it sees them; who comes second reads it, and so does everybody whose own result would have been another.

So only the very first epoch of a run waits for other ranks, and only until each has begun it. Any process may agree for its
rank, DataLoader workers, too. A run keeps the orders of its last `KEPT_EPOCHS` epochs; whoever pins a new one removes older
ones, and what runs have left that have pinned nothing for `KEPT_S`.

A state in the middle of an epoch names the order under which it was taken. Where as many ranks go on, they take it up: it is
what they propose for the rest of that epoch, if it is still there. Otherwise, and from the next epoch on, they agree anew.

Invariant: every rank of a run reads an epoch by the same order, whatever each would have computed, or there is an error. Which
samples a global batch has does not depend on it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

from blake3 import blake3

from client.errors import Busy, CursorExpired, DeadlineExceeded, Forbidden, ObjectNotFound, PreconditionFailed
from client.objects import ObjectStore
from client.placement import partition_of
from client.record import ObjectInfo
from client.retry import Backoff, Deadline
from loader.errors import LanesNotAgreed
from loader.placed import num_local, place_lanes
from loader.reader import DatasetReader
from loader.state import LoaderState

__all__ = ["KEPT_EPOCHS", "KEPT_S", "LaneAgreement", "holders_of_lanes"]

log = logging.getLogger(__name__)

KEPT_EPOCHS: Final = 8
KEPT_S: Final = 30 * 86400.0
AGREE_TIMEOUT_S: Final = 600.0
_WATCH_S: Final = 30.0
_ASK_BASE_S: Final = 0.05
_ASK_MAX_S: Final = 2.0
_KNOWN_EPOCHS: Final = 4


class _Pinned(NamedTuple):
    """An order that was agreed, and what a state calls it."""

    order: tuple[int, ...]
    name: str


class LaneAgreement:
    """What one rank knows of the orders that its run has agreed on. Thread-safe; pickles, to workers.

    Parameters
    ----------
    run_id : str
        See `loader.ranks.resolve_run_id`.
    rank, world_size : int
        Data-parallel.
    timeout_s : float
        How long the first epoch may wait for the other ranks.
    """

    def __init__(self, *, run_id: str, rank: int, world_size: int, timeout_s: float = AGREE_TIMEOUT_S) -> None:
        self._run_id = run_id
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        # Of this epoch and the next one, whose first blocks are fetched before this one ends, in another thread.
        self._known: dict[tuple[str, int], _Pinned] = {}
        self._resumed: LoaderState | None = None
        self._introduced = ""  # Where this rank has said where it is.

    def resume(self, saved: LoaderState) -> None:
        """Propose, for the rest of the epoch, the order under which a state was taken."""
        self._resumed = saved

    def order(self, store: ObjectStore, reader: DatasetReader, *, epoch: int) -> tuple[int, ...]:
        """The order of the lanes in an epoch, the same on all ranks.

        Raises
        ------
        LanesNotAgreed
            If other ranks did not say in time where they run, or what is stored is no order of these lanes. Errors of the
            store pass through; `Forbidden` if the token may not write below the dataset's key.
        """
        return self._agreed(store, reader, epoch=epoch).order

    def name(self, store: ObjectStore, reader: DatasetReader, *, epoch: int) -> str:
        """What a state calls that order."""
        known = self._known.get((reader.index.digest, epoch)) or self._agreed(store, reader, epoch=epoch)
        return known.name

    def _agreed(self, store: ObjectStore, reader: DatasetReader, *, epoch: int) -> _Pinned:
        # Asked for anew each time: what others have removed since, they would agree on once more.
        folder = _Folder(store, reader, run_id=self._run_id, world_size=self._world_size)
        if self._introduced != folder.path:
            self._hosts(folder, epoch=epoch)
            self._introduced = folder.path
        body = folder.get(_epoch_name(epoch))
        if body is None:
            body = self._pin(folder, epoch=epoch, hosts=self._hosts(folder, epoch=epoch))
        order = _decoded_order(body, num_lanes=reader.index.num_lanes, where=folder.key(_epoch_name(epoch)))
        pinned = _Pinned(order, f"placed:{self._run_id}:{self._world_size}:{_digest(body)}")
        # Replaced as a whole, for another thread may be at the same.
        self._known = {**dict(list(self._known.items())[1 - _KNOWN_EPOCHS :]), (reader.index.digest, epoch): pinned}
        return pinned

    def _pin(self, folder: _Folder, *, epoch: int, hosts: list[str]) -> bytes:
        body = self._old_order(folder, epoch=epoch)
        if body is None:
            holders = holders_of_lanes(folder.reader, folder.store)
            order = place_lanes(holders, hosts=hosts)
            body = _encoded(order)
            log.info(
                "epoch %d: %d of %d lanes go to ranks on whose hosts they lie",
                epoch,
                num_local(order, holders, hosts=hosts),
                len(order),
            )
        pinned, is_ours = folder.pin(_epoch_name(epoch), body)
        if is_ours:
            folder.prune(epoch=epoch)
        return pinned

    def _old_order(self, folder: _Folder, *, epoch: int) -> bytes | None:
        """The order that the state under which we go on names, None if it is of no use (any more)."""
        saved = self._resumed
        if saved is None or (saved.epoch, saved.dataset_digest) != (epoch, folder.reader.index.digest):
            return None
        kind, *named = saved.lane_map.split(":")
        if kind != "placed" or len(named) != 3 or int(named[1]) != self._world_size:
            return None
        run_id, _, digest = named
        before = _Folder(folder.store, folder.reader, run_id=run_id, world_size=self._world_size)
        body = before.get(_epoch_name(epoch))
        if body is None or _digest(body) != digest:
            log.warning(
                "the lanes of epoch %d are divided anew: how run %s had divided them is not kept any more", epoch, run_id
            )
            return None
        return body

    def _hosts(self, folder: _Folder, *, epoch: int) -> list[str]:
        body = folder.get("hosts")
        if body is None:
            own = f"rank-{self._rank}"
            folder.put(own, b"", metadata={"rank": str(self._rank), "host": folder.store.host()})
            if self._rank == 0:
                hosts = self._gather_hosts(folder)
                # First, for all who wait for the hosts to find it, instead of making one each.
                self._pin(folder, epoch=epoch, hosts=hosts)
                body, _ = folder.pin("hosts", _encoded(hosts))
            else:
                body = self._await_hosts(folder)
            folder.delete([folder.key(own)])
        return self._put_right(folder, self._decoded_hosts(folder, body))

    def _put_right(self, folder: _Folder, hosts: list[str]) -> list[str]:
        """Have the hosts say of this rank where it is."""
        own = folder.store.host()
        while hosts[self._rank] != own:
            etag = folder.store.stat(folder.bucket, folder.key("hosts")).etag
            hosts = self._decoded_hosts(folder, folder.get("hosts"))
            hosts[self._rank] = own
            try:
                folder.put("hosts", _encoded(hosts), if_match=etag)
            except PreconditionFailed:  # Another rank was at it.
                hosts = self._decoded_hosts(folder, folder.get("hosts"))
        return hosts

    def _decoded_hosts(self, folder: _Folder, body: bytes | None) -> list[str]:
        hosts = json.loads(body or b"null")
        if not isinstance(hosts, list) or len(hosts) != self._world_size:
            raise LanesNotAgreed(f"{folder.key('hosts')} names the hosts of {self._world_size} ranks, found {body!r:.200}")
        return [str(host) for host in hosts]

    def _gather_hosts(self, folder: _Folder) -> list[str]:
        hosts: dict[int, str] = {}
        for info in folder.follow("rank-", timeout_s=self._timeout_s):
            hosts[int(info.metadata["rank"])] = info.metadata["host"]
            if len(hosts) == self._world_size:
                return [hosts[rank] for rank in range(self._world_size)]
        missing = sorted(set(range(self._world_size)).difference(hosts))
        raise LanesNotAgreed(
            f"ranks {', '.join(map(str, missing[:20]))} of {self._world_size} did not begin to read {folder.reader.url} within "
            f"{self._timeout_s:g} s: all ranks have to read it, with the same run_id ({self._run_id}), or locality=False"
        )

    def _await_hosts(self, folder: _Folder) -> bytes:
        # By asking again: a thousand ranks that watch would take the places of all others that do.
        backoff, deadline = Backoff(base_s=_ASK_BASE_S, max_s=_ASK_MAX_S), Deadline(self._timeout_s)
        for attempt in count():
            try:
                return folder.store.get(folder.bucket, folder.key("hosts"))
            except ObjectNotFound as error:
                if not backoff.wait(attempt, error=error, deadline=deadline):
                    break
        raise LanesNotAgreed(
            f"rank 0 did not say within {self._timeout_s:g} s where all ranks of run {self._run_id} are: it has to read "
            f"{folder.reader.url} with the same run_id, as all others have to, or locality=False"
        )


class _Folder:
    """The objects of one run, one version of a dataset and one number of ranks."""

    def __init__(self, store: ObjectStore, reader: DatasetReader, *, run_id: str, world_size: int) -> None:
        self.store = store
        self.reader = reader
        self.bucket = reader.info.bucket
        self._of_dataset = f"{reader.info.key}.lanes/"
        self.path = f"{self._of_dataset}{run_id}/{reader.index.digest[:16]}-{world_size}/"

    def key(self, name: str) -> str:
        return self.path + name

    def get(self, name: str) -> bytes | None:
        try:
            return self.store.get(self.bucket, self.key(name))
        except ObjectNotFound:
            return None

    def put(self, name: str, body: bytes, **options: Any) -> None:
        self.store.put(self.bucket, self.key(name), body, **options)

    def pin(self, name: str, body: bytes) -> tuple[bytes, bool]:
        """Create an object, unless it is there: what it is in the end, and whether that is ours."""
        try:
            self.put(name, body, if_none_match="*")
        except PreconditionFailed:
            return self.store.get(self.bucket, self.key(name)), False
        return body, True

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                self.store.delete(self.bucket, key)
            except ObjectNotFound:
                continue  # Another process was first.
            except Forbidden as error:
                log.warning("what nobody needs any more of how lanes were divided is left where it is: %s", error.message)
                return

    def follow(self, prefix: str, *, timeout_s: float) -> Iterator[ObjectInfo]:
        """The objects whose names begin with `prefix`, and those that are added, until the time is up."""
        deadline, prefix, catalog = Deadline(timeout_s), self.key(prefix), self.store.catalog
        while deadline.remaining_s():
            try:
                page = self.store.list(self.bucket, prefix=prefix)
                after = page.revision
                yield from page.objects
                while page.cursor is not None:
                    page = self.store.list(self.bucket, prefix=prefix, cursor=page.cursor)
                    yield from page.objects
                while left_s := deadline.remaining_s():
                    watched = catalog.watch(self.bucket, prefix=prefix, after=after, timeout_s=min(left_s, _WATCH_S))
                    yield from (info for _, info in watched.changes if info is not None)
                    after = watched.revision
            except (Busy, CursorExpired, DeadlineExceeded) as error:
                # Others watch as well. The client has paused for as long as it may by itself.
                log.info("what other ranks say is looked up instead of waited for: %s", error.message)

    def prune(self, *, epoch: int) -> None:
        """Remove orders of long ago: of this run's earlier epochs, and of runs that have pinned nothing for long."""
        runs: dict[str, list[ObjectInfo]] = {}
        for info in self.store.walk(self.bucket, prefix=self._of_dataset):
            runs.setdefault(info.key.rpartition("/")[0] + "/", []).append(info)
        oldest_s = time.time() - KEPT_S
        for path, infos in runs.items():
            if path == self.path:
                self.delete(info.key for info in infos if _is_epoch_before(epoch - KEPT_EPOCHS, info.key))
            elif max(info.record.created_s for info in infos) < oldest_s:
                self.delete(info.key for info in infos)


def holders_of_lanes(reader: DatasetReader, store: ObjectStore) -> list[list[str]]:
    """For each lane, the hosts on which the current layout places copies of it, best first."""
    layout = store.cluster.layout
    host_of = {node.id: node.host for node in layout.nodes}
    holders = []
    for lane in reader.index.lanes:
        nodes: Sequence[str] = ()
        if lane.group is not None:
            partition = partition_of(lane.group.encode(), partitions=layout.partitions)
            nodes = layout.replicas(partition, count=reader.info.record.replicas)
        holders.append([host_of[node_id] for node_id in nodes])
    return holders


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch}"


def _is_epoch_before(epoch: int, key: str) -> bool:
    kind, _, number = key.rpartition("/")[2].partition("-")
    return kind == "epoch" and int(number) < epoch


def _encoded(value: Sequence[int] | Sequence[str]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(body: bytes) -> str:
    return blake3(body).hexdigest()[:16]


def _decoded_order(body: bytes, *, num_lanes: int, where: str) -> tuple[int, ...]:
    order = json.loads(body)
    if not isinstance(order, list) or sorted(order) != list(range(num_lanes)):
        raise LanesNotAgreed(f"{where} is an order of {num_lanes} lanes, found {body[:200]!r}")
    return tuple(order)
