"""Counting copies where they lie: every chunk of every object, on every node that should hold it, re-hashed.

Theory of operation
-------------------
Records say what should exist: each version's chunks, manifests included, times its number of replicas, on the nodes that the
layout names. `verify` walks the records and asks each of these nodes to re-hash its copies. It believes nothing that was
remembered. References are collected into batches, a chunk that several objects share counts once per batch, and a batch is
settled before the next begins, so memory is the same for any number of objects of any size.

`Tally` does the counting and neither asks nor waits. A node that does not answer makes its copies unreachable, which is as
far from healthy as missing: the counts say what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypeAlias

from client.chunks import ChunkClient
from client.errors import Busy, StoreError
from client.manifest import Ref
from client.objects import ObjectStore
from client.placement import Layout
from client.record import ObjectInfo
from client.retry import Backoff, Deadline, retrying

__all__ = ["Health", "ObjectHealth", "Tally", "verify"]

BATCH_REFS = 4096
# One request re-hashes so much at most: it ends in seconds, and shows progress.
CALL_REFS = 256
CALL_BYTES = 256 * 1024 * 1024
MAX_NODES_AT_ONCE = 32
MAX_SHORTFALLS = 1000

Status = Literal["ok", "missing", "corrupt", "unreachable"]
CopyKey: TypeAlias = tuple[int, bytes, str]
Statuses: TypeAlias = Mapping[CopyKey, Status]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectHealth:
    """What an object lacks.

    Attributes
    ----------
    chunks, short_chunks : int
        References to chunks, and those of them with fewer good copies than `replicas`.
    least_copies : int
        Good copies of the chunk that has the fewest.
    problem : str
        Why the chunks could not be listed to their end; empty if they were.
    """

    info: ObjectInfo
    replicas: int
    chunks: int
    short_chunks: int
    least_copies: int
    problem: str = ""

    @property
    def clean(self) -> bool:
        """Whether the object has all its replicas."""
        return not self.short_chunks and not self.problem

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "bucket": self.info.bucket,
            "key": self.info.key,
            "version": self.info.version,
            "replicas": self.replicas,
            "chunks": self.chunks,
            "short_chunks": self.short_chunks,
            "least_copies": self.least_copies,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The result of a count.

    Attributes
    ----------
    objects, objects_clean : int
        Versions of objects that were counted, and those that have all their replicas.
    chunks : int
        Distinct chunks; one that objects far apart in the listing share may count more than once.
    copies_expected, copies_ok, copies_missing, copies_corrupt, copies_unreachable : int
        The last four add up to the first.
    least_replicas, most_replicas : int
        Over all objects; 0 without objects.
    silent_nodes : mapping of str to str
        Nodes that did not answer, and why.
    shortfalls : tuple of ObjectHealth
        The first `MAX_SHORTFALLS` of the objects that are not clean.
    """

    objects: int
    objects_clean: int
    chunks: int
    copies_expected: int
    copies_ok: int
    copies_missing: int
    copies_corrupt: int
    copies_unreachable: int
    least_replicas: int
    most_replicas: int
    silent_nodes: Mapping[str, str] = field(default_factory=dict)
    shortfalls: tuple[ObjectHealth, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether every object has all its replicas."""
        return self.objects == self.objects_clean

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        value = {name: getattr(self, name) for name in self.__slots__ if name not in ("silent_nodes", "shortfalls")}
        shortfalls = [shortfall.to_json() for shortfall in self.shortfalls]
        return {"clean": self.clean, **value, "silent_nodes": dict(self.silent_nodes), "shortfalls": shortfalls}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The end of an object's references; with a problem, they could not be read further."""

    problem: str = ""


# What a walk over records gives: an object, its references, its end, the next object.
Step: TypeAlias = ObjectInfo | Ref | Listed


class Tally:
    """Adds up batches of steps with the statuses of their copies.

    An object may span batches; they must come in order.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._copies = dict.fromkeys(("ok", "missing", "corrupt", "unreachable"), 0)
        self._objects = self._clean = self._chunks = 0
        self._least_replicas = self._most_replicas = 0
        self._shortfalls: list[ObjectHealth] = []
        # The object under way.
        self._info: ObjectInfo | None = None
        self._refs = self._short = self._least = 0

    def holders(self, ref: Ref, info: ObjectInfo) -> tuple[str, ...]:
        """Who should hold a chunk of an object."""
        return self._layout.replicas(ref.partition, count=info.record.replicas)

    def add(self, batch: Iterable[Step], statuses: Statuses) -> None:
        """Count a batch, for each copy of which `statuses` says what its node answered."""
        seen: set[CopyKey] = set()
        for step in batch:
            if isinstance(step, ObjectInfo):
                self._begin(step)
            elif isinstance(step, Ref):
                self._count(step, statuses, seen)
            else:
                self._end(step.problem)

    def health(self, silent_nodes: Mapping[str, str]) -> Health:
        """What has been counted so far."""
        return Health(
            objects=self._objects,
            objects_clean=self._clean,
            chunks=self._chunks,
            copies_expected=sum(self._copies.values()),
            copies_ok=self._copies["ok"],
            copies_missing=self._copies["missing"],
            copies_corrupt=self._copies["corrupt"],
            copies_unreachable=self._copies["unreachable"],
            least_replicas=self._least_replicas,
            most_replicas=self._most_replicas,
            silent_nodes=dict(silent_nodes),
            shortfalls=tuple(self._shortfalls),
        )

    def _begin(self, info: ObjectInfo) -> None:
        wanted = info.record.replicas
        self._least_replicas = min(self._least_replicas or wanted, wanted)
        self._most_replicas = max(self._most_replicas, wanted)
        self._info, self._refs, self._short, self._least = info, 0, 0, wanted

    def _count(self, ref: Ref, statuses: Statuses, seen: set[CopyKey]) -> None:
        assert self._info is not None, "a reference comes after its object"
        wanted = self._info.record.replicas
        # A node that does not exist holds nothing: a layout too small for the number of replicas lacks copies.
        absent = [(ref.partition, ref.id, f"absent {number}") for number in range(wanted)]
        copies = [(ref.partition, ref.id, node) for node in self.holders(ref, self._info)]
        copies += absent[len(copies) :]
        self._chunks += not any(copy in seen for copy in copies)
        good = 0
        for copy in copies:
            status = statuses.get(copy, "missing")
            good += status == "ok"
            if copy not in seen:
                seen.add(copy)
                self._copies[status] += 1
        self._refs += 1
        self._short += good < wanted
        self._least = min(self._least, good)

    def _end(self, problem: str) -> None:
        assert self._info is not None, "an object ends once"
        found = ObjectHealth(
            info=self._info,
            replicas=self._info.record.replicas,
            chunks=self._refs,
            short_chunks=self._short,
            least_copies=self._least,
            problem=problem,
        )
        self._info = None
        self._objects += 1
        self._clean += found.clean
        if not found.clean and len(self._shortfalls) < MAX_SHORTFALLS:
            self._shortfalls.append(found)


def verify(store: ObjectStore, infos: Iterable[ObjectInfo], *, on_copies: Callable[[int], None] = lambda count: None) -> Health:
    """Re-hash every copy of every chunk of `infos` and count; tombstones have none.

    Copies found corrupt are set aside and repaired by their nodes, so a second count may well be clean.

    Parameters
    ----------
    on_copies : callable
        Is told how many more copies have been asked for; from several threads.
    """
    tally = Tally(store.cluster.refresh().layout)
    silent: dict[str, str] = {}
    with ThreadPoolExecutor(MAX_NODES_AT_ONCE, thread_name_prefix="forebay-verify") as pool:
        for batch in _batches(_steps(store, infos)):
            wanted = _copies_by_node(batch, tally)
            asked = {node: _Asking(store, node, silent, on_copies) for node in wanted}
            answers = pool.map(lambda node: asked[node].statuses(wanted[node]), wanted)  # noqa: B023 (consumed right here)
            tally.add(batch, dict(chain.from_iterable(answers)))
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
        if len(batch) >= BATCH_REFS:
            yield batch
            batch = []
    if batch:
        yield batch


class _Asking:
    """Asks one node for its copies of a batch."""

    def __init__(
        self, store: ObjectStore, node_id: str, silent: dict[str, str], on_copies: Callable[[int], None]
    ) -> None:
        self._chunks: ChunkClient = store.chunks
        self._config = store.config
        self._node_id = node_id
        self._silent = silent
        self._on_copies = on_copies

    def statuses(self, refs: Sequence[Ref]) -> list[tuple[CopyKey, Status]]:
        """What the node says of each of `refs`; once it is silent, it is not asked again in this batch."""
        found: list[tuple[CopyKey, Status]] = []
        silent = False
        for part in _calls(refs):
            answers = None if silent else self._ask(part)
            silent = answers is None
            said = ["unreachable"] * len(part) if answers is None else answers
            found += [((ref.partition, ref.id, self._node_id), _status(word)) for ref, word in zip(part, said, strict=True)]
            self._on_copies(len(part))
        return found

    def _ask(self, refs: Sequence[Ref]) -> list[str] | None:
        def attempt() -> list[str] | None:
            try:
                return self._chunks.verify(self._node_id, refs)
            except Busy:
                raise  # worth waiting for, unlike a node that does not answer
            except StoreError as error:
                self._silent[self._node_id] = error.message
                return None

        backoff = Backoff(base_s=self._config.retry_base_s, max_s=self._config.retry_max_s)
        try:
            return retrying(attempt, backoff=backoff, deadline=Deadline(self._config.deadline_s))
        except Busy as error:
            self._silent[self._node_id] = error.message
            return None
