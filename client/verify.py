"""Counting copies where they lie: every chunk of every object, on every node that should hold it, re-hashed.

Theory of operation
-------------------
Records say what should exist: each version's chunks, manifests included, times its number of replicas, on the nodes that the
layout names. `verify` walks the records and asks each of these nodes to re-hash its copies. It believes nothing that was
remembered. References are collected into batches, a chunk that several objects share is asked for once per batch, and a batch
is settled before the next begins, so memory is the same for any number of objects of any size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from client.errors import Busy, DiskFailed, StoreError
from client.health import CopyKey, Health, Listed, Status, Step, Tally
from client.in_flight import ThreadPool
from client.manifest import Ref
from client.objects import ObjectStore
from client.record import ObjectInfo
from client.retry import Backoff, Deadline, retrying

__all__ = ["verify"]

BATCH_STEPS = 4096
# One request re-hashes so much at most: it ends in seconds, and shows progress.
CALL_REFS = 256
CALL_BYTES = 256 * 1024 * 1024
MAX_NODES_AT_ONCE = 32
OnCopies = Callable[[int], None]
_STATUSES: dict[str, Status] = {"ok": "ok", "missing": "missing", "corrupt": "corrupt", "unreachable": "unreachable"}


def _ignore(_num_copies: int) -> None:
    pass


def verify(store: ObjectStore, infos: Iterable[ObjectInfo], *, on_copies: OnCopies = _ignore) -> Health:
    """Re-hash every copy of every chunk of `infos` and count; tombstones have none.

    Copies found corrupt are set aside and repaired by their nodes, so a second count may well be clean.

    Parameters
    ----------
    on_copies : callable
        Is told how many more copies were asked for; from several threads.

    Raises
    ------
    StoreError
        The layout, or a page of the listing that `infos` comes from, can't be read. A node that is silent or a manifest
        that can't be read is part of the result.
    """
    tally = Tally(store.cluster.refresh().layout)
    stop = threading.Event()
    silent: dict[str, str] = {}
    with ThreadPool(MAX_NODES_AT_ONCE, name="forebay-verify") as pool:
        try:
            for batch in _batches(_steps(store, infos)):
                questions = [
                    _Question(store, node_id, refs, stop=stop, on_copies=on_copies)
                    for node_id, refs in _refs_by_node(batch, tally).items()
                ]
                statuses: dict[CopyKey, Status] = {}
                for question, answer in zip(questions, pool.map(_Question.statuses, questions), strict=True):
                    statuses.update(answer)
                    if question.silence:
                        silent[question.node_id] = question.silence
                tally.add(batch, statuses)
        finally:
            stop.set()
    return tally.health(silent)


def _steps(store: ObjectStore, infos: Iterable[ObjectInfo]) -> Iterator[Step]:
    for info in infos:
        if info.record.tombstone:
            continue
        yield info
        problem = ""
        try:
            yield from store.reader(info).refs()
        except StoreError as error:  # a manifest that no replica gives, or that does not decode
            problem = f"{error.title}: {error.message}"
        yield Listed(problem=problem)


def _batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    batch: list[Step] = []
    for step in steps:
        batch.append(step)
        if len(batch) >= BATCH_STEPS:
            yield batch
            batch = []
    if batch:
        yield batch


def _refs_by_node(batch: Iterable[Step], tally: Tally) -> dict[str, list[Ref]]:
    """For each node the distinct chunks of a batch that it should hold."""
    wanted: dict[str, dict[tuple[int, bytes], Ref]] = {}
    for ref, holders in tally.wanted(batch):
        for node_id in holders:
            wanted.setdefault(node_id, {})[ref.partition, ref.id] = ref
    return {node_id: list(refs.values()) for node_id, refs in wanted.items()}


class _Question:
    """What one node is asked about one batch.

    Attributes
    ----------
    silence : str
        Why the node did not answer; empty if it did.
    """

    def __init__(
        self, store: ObjectStore, node_id: str, refs: Sequence[Ref], *, stop: threading.Event, on_copies: OnCopies
    ) -> None:
        self.node_id = node_id
        self.silence = ""
        self._store = store
        self._refs = refs
        self._stop = stop
        self._on_copies = on_copies

    def statuses(self) -> dict[CopyKey, Status]:
        """The status of each copy. After a call without an answer the node is not asked again."""
        found: dict[CopyKey, Status] = {}
        for part in _calls(self._refs):
            if self._stop.is_set():
                break
            answers = ["unreachable"] * len(part) if self.silence else self._ask(part)
            for ref, answer in zip(part, answers, strict=True):
                found[ref.partition, ref.id, self.node_id] = _status(answer)
            self._on_copies(len(part))
        return found

    def _ask(self, refs: Sequence[Ref]) -> list[str]:
        def attempt() -> list[str]:
            try:
                return self._store.chunks.verify(self.node_id, refs)
            except Busy:
                raise  # worth waiting for, unlike a node that is down
            except DiskFailed:
                # The disk can't read one of them. Halving finds which one without giving up the others.
                half = len(refs) // 2
                return [*self._ask(refs[:half]), *self._ask(refs[half:])] if half else ["corrupt"]
            except StoreError as error:
                self.silence = error.message
                return ["unreachable"] * len(refs)

        config = self._store.config
        backoff = Backoff(base_s=config.retry_base_s, max_s=config.retry_max_s)
        try:
            return retrying(attempt, backoff=backoff, deadline=Deadline(config.deadline_s))
        except Busy as error:
            self.silence = error.message
            return ["unreachable"] * len(refs)


def _calls(refs: Sequence[Ref]) -> Iterator[Sequence[Ref]]:
    first, size_bytes = 0, 0
    for index, ref in enumerate(refs):
        if index > first and (index - first == CALL_REFS or size_bytes + ref.size > CALL_BYTES):
            yield refs[first:index]
            first, size_bytes = index, 0
        size_bytes += ref.size
    if refs:
        yield refs[first:]


def _status(word: str) -> Status:
    # A word that this release does not know is no confirmation.
    return _STATUSES.get(word, "corrupt")
