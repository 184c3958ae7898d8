"""Builds on the machines of a Ray cluster. Ray is taken only when it is asked for.

Theory of operation
-------------------
Tasks read: a piece of the input is unpacked, parsed and checked where Ray puts it, and its rows are cut C ways, every C-th
together. Actors write: C of them, C a divisor of L. Row i belongs to actor i mod C, whose rows, counted by themselves, are
those of a writer of L/C lanes: its lane σ'[j] is the dataset's lane σ[c + C·j]. So an actor is a `ShardWriter`: it deals,
compresses and stores its share, and in the end hands over what its lanes are. The process that builds sees numbers of rows and
references, and no rows; it writes tables and index and commits.

Which rows a block has follows from the rows alone, so the dataset is the one that a single process builds, and parts that one
has left can be taken up here, with any C, and the other way round.

Inputs are such that every machine can read them: URLs, or a file system that they share. Pieces that carry their bytes (JSON
lines, CSV, tar and .npz, which are read from front to back) take them along from the process that builds. Its endpoints and
token go to the actors.

Bounds: pieces in flight as for a build here; `MAX_PENDING` shares of pieces wait for an actor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from client.client import Client
from client.errors import StoreError
from client.record import ObjectInfo
from loader.columns import EncodedColumn, Schema
from loader.errors import InvalidOption, LoaderError
from loader.order import lane_permutation
from loader.source_rows import Piece, SourceError
from loader.staging import LaneProgress
from loader.writer import ShardWriter

__all__ = ["MAX_PENDING", "RayWriter", "Shares", "num_machines", "num_ray_cpus", "on_ray_cluster"]

MAX_PENDING: Final = 4
Batch = tuple[EncodedColumn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The rows of a piece where Ray keeps them: how many, and every C-th from each of the first C on."""

    num_rows: int
    refs: tuple[Any, ...]


def connect_ray() -> ModuleType:
    """Ray, joined to the cluster that ``RAY_ADDRESS`` names, or to one that begins here."""
    try:
        import ray
    except ImportError as exc:
        raise InvalidOption("building on Ray needs ray; install it with: pip install 'forebay[loader,ray]'") from exc
    module: ModuleType = ray
    if not module.is_initialized():
        module.init(log_to_driver=False)
    return module


def encoding_on_ray(schema: Schema, *, num_shares: int) -> Callable[[Piece], tuple[Piece, Shares]]:
    """What encodes a piece as a Ray task, and waits for it. Raises as `Piece.encode` does."""
    ray = connect_ray()
    task, shared = ray.remote(_encode).options(num_returns=1 + num_shares), ray.put(schema)

    def encode(piece: Piece) -> tuple[Piece, Shares]:
        count, *refs = task.remote(piece, shared, num_shares)
        found = _get(ray, count, what=f"reads the input from {piece.place} on")
        if isinstance(found, LoaderError):
            raise found
        return piece, Shares(num_rows=found, refs=tuple(refs))

    return encode


def _encode(piece: Piece, schema: Schema, num_shares: int) -> tuple[Any, ...]:
    try:
        batch = piece.encode(schema)
    except LoaderError as error:
        # As a value: raised in a task, it would arrive as one of Ray's.
        return (error, *[None] * num_shares)
    return (len(batch[0]), *[tuple(column[first::num_shares] for column in batch) for first in range(num_shares)])


class _LaneWriter:
    """The actor: a writer of some of the lanes."""

    def __init__(self, endpoints: list[str], token: str | None, url: str, options: Mapping[str, Any]) -> None:
        self._writer = ShardWriter(url, client=Client(endpoints, token), **options)

    def write(self, batch: Batch) -> int:
        """Append rows; how many bytes are stored."""
        self._writer.write_checked(batch)
        return self._writer.stored_bytes

    def progress(self, told: Sequence[tuple[int, int]]) -> tuple[LaneProgress, ...]:
        return self._writer.progress(told)

    def go_on(self, lanes: Sequence[LaneProgress], first_row: int) -> None:
        self._writer.go_on(lanes, first_row=first_row)

    def hand_over(self) -> tuple[LaneProgress, ...]:
        return self._writer.hand_over()


class RayWriter:
    """Writes as a `ShardWriter` does, by actors. Used by one thread.

    Parameters
    ----------
    writer : ShardWriter
        Of the whole dataset; it commits.
    num_lanes : int
        L.
    num_actors : int
        C, a divisor of L.
    options : mapping
        Of the actors' writers, but for the lanes.

    Attributes
    ----------
    num_rows : int
        Rows written so far.
    """

    def __init__(
        self, writer: ShardWriter, url: str, client: Client, *, num_lanes: int, num_actors: int, options: Mapping[str, Any]
    ) -> None:
        assert num_lanes % num_actors == 0
        self._ray = connect_ray()
        self._whole = writer
        self.num_rows = 0
        # Reading needs the cores; an actor's work waits for it.
        actor = self._ray.remote(_LaneWriter).options(num_cpus=0, scheduling_strategy="SPREAD")
        own = {**options, "num_lanes": num_lanes // num_actors}
        endpoints, token = list(client.config.endpoints), client.config.token
        self._actors = [actor.remote(endpoints, token, url, own) for _ in range(num_actors)]
        self._pending: list[deque[Any]] = [deque() for _ in range(num_actors)]
        self._stored = [0] * num_actors
        whole, part = lane_permutation(num_lanes).tolist(), lane_permutation(num_lanes // num_actors).tolist()
        self._lanes = [[0] * len(part) for _ in range(num_actors)]
        for number, lanes in enumerate(self._lanes):
            for place, lane in enumerate(part):
                lanes[lane] = whole[number + num_actors * place]

    @property
    def stored_bytes(self) -> int:
        """See `ShardWriter.stored_bytes`; as of the shares that are known to be written."""
        return sum(self._stored)

    def write_checked(self, shares: Shares) -> None:
        """Append the rows of a piece."""
        for shift, ref in enumerate(shares.refs[: shares.num_rows]):
            number = (self.num_rows + shift) % len(self._actors)
            self._pending[number].append(self._actors[number].write.remote(ref))
            while len(self._pending[number]) > MAX_PENDING:
                self._settle(number)
        self.num_rows += shares.num_rows

    def progress(self, told: Sequence[tuple[int, int]] = ()) -> tuple[LaneProgress, ...]:
        """See `ShardWriter.progress`."""
        self._settle_all()
        asked = [[told[lane] for lane in lanes] if told else [] for lanes in self._lanes]
        calls = [actor.progress.remote(part) for actor, part in zip(self._actors, asked, strict=True)]
        answers = self._answers(calls)
        return self._together(answers) if all(answers) else ()

    def go_on(self, lanes: Sequence[LaneProgress], *, first_row: int) -> None:
        """See `ShardWriter.go_on`."""
        num_actors = len(self._actors)
        rows = [len(range(number, first_row, num_actors)) for number in range(num_actors)]
        shares = [[lanes[lane] for lane in own] for own in self._lanes]
        self._answers([actor.go_on.remote(*each) for actor, *each in zip(self._actors, shares, rows, strict=True)])
        self.num_rows = first_row

    def name_part(self, *args: Any, **options: Any) -> ObjectInfo:
        """See `ShardWriter.name_part`."""
        return self._whole.name_part(*args, **options)

    def commit(self) -> ObjectInfo:
        """Have the actors store what is left, and commit all of it."""
        self._settle_all()
        lanes = self._together(self._answers([actor.hand_over.remote() for actor in self._actors]))
        self._whole.go_on(lanes, first_row=self.num_rows)
        return self._whole.commit()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _together(self, answers: Sequence[Sequence[LaneProgress]]) -> tuple[LaneProgress, ...]:
        found = {
            lane: progress
            for lanes, answer in zip(self._lanes, answers, strict=True)
            for lane, progress in zip(lanes, answer, strict=True)
        }
        return tuple(found[lane] for lane in range(len(found)))

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        return [_get(self._ray, call, what="writes lanes") for call in calls]

    def _settle(self, number: int) -> None:
        self._stored[number] = _get(self._ray, self._pending[number].popleft(), what="writes lanes")

    def _settle_all(self) -> None:
        for number, pending in enumerate(self._pending):
            while pending:
                self._settle(number)


@contextmanager
def on_ray_cluster(
    writer: ShardWriter, url: str, client: object, *, num_lanes: int, options: Mapping[str, Any]
) -> Iterator[tuple[ShardWriter | RayWriter, Callable[[Piece], tuple[Piece, Any]]]]:
    """What writes, by an actor on each machine as far as the lanes can be shared out evenly, and what encodes pieces for it."""
    if not isinstance(client, Client):
        raise InvalidOption("building on Ray needs a client.Client, whose endpoints and token its processes use")
    num_actors = max(number for number in range(1, num_machines() + 1) if num_lanes % number == 0)
    by_actors = RayWriter(writer, url, client, num_lanes=num_lanes, num_actors=num_actors, options=options)
    try:
        yield by_actors, encoding_on_ray(writer.schema, num_shares=num_actors)
    finally:
        by_actors.close()


def num_machines() -> int:
    """Machines of the Ray cluster."""
    return max(1, sum(bool(node["Alive"]) for node in connect_ray().nodes()))


def num_ray_cpus() -> int:
    """Cores of the Ray cluster."""
    return max(1, int(connect_ray().cluster_resources().get("CPU", 1)))


def _get(ray: ModuleType, ref: Any, *, what: str) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as exc:
        cause = getattr(exc, "cause", None)
        if isinstance(cause, LoaderError | StoreError):
            raise cause from exc
        raise SourceError(f"the process of the Ray cluster that {what} failed: {exc}") from exc
