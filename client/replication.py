"""Changing how many replicas objects have, and waiting until that many can be counted.

First every record gets its new number, then the copies are counted where they lie until they are all there. The nodes make
them by themselves, from the records; the waiting only watches, so it may be interrupted and repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from client.errors import Conflict, InvalidRequest, ObjectNotFound, PreconditionFailed
from client.health import ObjectHealth
from client.objects import ObjectStore
from client.parallel import bounded_map
from client.record import ObjectInfo
from client.retry import Deadline
from client.verify import verify

__all__ = ["Replication", "replicate"]

MAX_PARALLEL = 8
MAX_TURNS = 8
# Objects that are waited for together; the number keeps memory the same however many there are.
BATCH_OBJECTS = 256
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replication:
    """What `replicate` achieved.

    Attributes
    ----------
    objects : int
        Objects that have the new number of replicas.
    changed : int
        Those of them that had another one before.
    counted : int
        Objects all of whose copies were counted before the time was up.
    missing : tuple of ObjectHealth
        Objects that were waited for when the time was up; those after them in the walk were not counted.
    """

    objects: int
    changed: int
    counted: int
    missing: tuple[ObjectHealth, ...] = ()


def replicate(
    store: ObjectStore,
    walk: Callable[[], Iterable[ObjectInfo]],
    *,
    replicas: int,
    timeout_s: float,
    on_objects: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Replication:
    """Give every object that `walk` yields so many replicas, and wait until they are counted.

    Parameters
    ----------
    walk : callable
        Begins a walk over the objects; called twice.
    timeout_s : float
        How long to wait for the copies, once all records are changed.
    on_objects : callable
        Is told how many more objects have all their copies.

    Raises
    ------
    InvalidRequest
        The cluster has fewer nodes. Nothing was changed.
    """
    num_nodes = len(store.cluster.refresh().layout.nodes)
    if not 1 <= replicas <= num_nodes:
        raise InvalidRequest(
            f"{replicas} replicas asked for, but the cluster has {num_nodes} nodes and a node holds one copy at most; "
            f"ask for 1 to {num_nodes}"
        )
    objects = changed = counted = 0
    for was_changed in bounded_map(lambda info: _set(store, info, replicas), walk(), max_parallel=MAX_PARALLEL):
        objects += 1
        changed += was_changed
    deadline = Deadline(timeout_s, clock=clock)
    remaining = iter(walk())
    while batch := list(islice(remaining, BATCH_OBJECTS)):
        missing = _wait(store, batch, deadline=deadline, sleep=sleep, on_objects=on_objects)
        counted += len(batch) - len(missing)
        if missing:
            return Replication(objects=objects, changed=changed, counted=counted, missing=missing)
    return Replication(objects=objects, changed=changed, counted=counted)


def _set(store: ObjectStore, info: ObjectInfo, replicas: int) -> bool:
    """Change one record; whether that was needed. An object that others change meanwhile is read again."""
    for _ in range(MAX_TURNS):
        if info.record.replicas == replicas:
            return False
        try:
            store.set_replicas(info, replicas)
        except PreconditionFailed:
            try:
                info = store.stat(info.bucket, info.key)
            except ObjectNotFound:
                return False
        else:
            return True
    raise Conflict(f"{info.bucket}/{info.key} changed {MAX_TURNS} times while its replicas were set", key=info.key)


def _wait(
    store: ObjectStore,
    infos: Sequence[ObjectInfo],
    *,
    deadline: Deadline,
    sleep: Callable[[float], None],
    on_objects: Callable[[int], None],
) -> tuple[ObjectHealth, ...]:
    """Count until nothing is missing or the time is up; what was missing last."""
    pause_s = FIRST_PAUSE_S
    while True:
        missing = verify(store, infos).shortfalls
        on_objects(len(infos) - len(missing))
        remaining_s = deadline.remaining_s()
        if not missing or remaining_s == 0:
            return missing
        sleep(min(pause_s, remaining_s))
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
        infos = list(_current(store, missing))


def _current(store: ObjectStore, missing: Iterable[ObjectHealth]) -> Iterator[ObjectInfo]:
    """The objects as they are by now; nobody makes copies for one that was overwritten or deleted."""
    for health in missing:
        with suppress(ObjectNotFound):
            yield store.stat(health.info.bucket, health.info.key)
