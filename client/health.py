"""What is known of the copies of objects, and how it is counted: no I/O here, `client.verify` asks the nodes.

A walk over records is a row of steps: an object, the references of its chunks, its end, the next object. `Tally` adds up
batches of steps as soon as each copy's status is known, and holds nothing but counts and the object under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from client.manifest import Ref
from client.placement import Layout
from client.record import ObjectInfo

__all__ = ["CopyKey", "Health", "Listed", "ObjectHealth", "Status", "Step", "Tally"]

MAX_SHORTFALLS = 1000

# unreachable: the node did not answer, which is as far from healthy as missing.
Status = Literal["ok", "missing", "corrupt", "unreachable"]
# Partition, chunk id, node id.
CopyKey: TypeAlias = tuple[int, bytes, str]


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

    def wanted(self, batch: Iterable[Step]) -> Iterator[tuple[Ref, tuple[str, ...]]]:
        """The references of the next batch, each with the nodes that should hold its chunk."""
        info = self._info
        for step in batch:
            if isinstance(step, ObjectInfo):
                info = step
            elif isinstance(step, Ref):
                assert info is not None, "a reference comes after its object"
                yield step, self._holders(step, info)

    def add(self, batch: Iterable[Step], statuses: Mapping[CopyKey, Status]) -> None:
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

    def _holders(self, ref: Ref, info: ObjectInfo) -> tuple[str, ...]:
        return self._layout.replicas(ref.partition, count=info.record.replicas)

    def _begin(self, info: ObjectInfo) -> None:
        wanted = info.record.replicas
        self._least_replicas = min(self._least_replicas or wanted, wanted)
        self._most_replicas = max(self._most_replicas, wanted)
        self._info, self._refs, self._short, self._least = info, 0, 0, wanted

    def _count(self, ref: Ref, statuses: Mapping[CopyKey, Status], seen: set[CopyKey]) -> None:
        assert self._info is not None, "a reference comes after its object"
        wanted = self._info.record.replicas
        # A node that does not exist holds nothing: a layout too small for the number of replicas lacks copies.
        absent = [(ref.partition, ref.id, f"absent {number}") for number in range(wanted)]
        copies = [(ref.partition, ref.id, node) for node in self._holders(ref, self._info)]
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
