"""What a build leaves in the store, so that the same build can go on where this one was killed.

Theory of operation
-------------------
Now and then a build that may be resumed names what it has stored since the last time: one object, a *part*, whose content is
the chunks, and after them a description: of each lane the chunks and the blocks that lie in them wholly, and a piece of the
input from which the rows that are missing can be had. So the chunks are kept, repaired and counted as any object's are.

Parts are called ``.builds/KEY/FINGERPRINT/NUMBER`` in the dataset's bucket. The fingerprint covers all that decides which
blocks come out: the files and their times, the columns, the options. Another input is another build and finds nothing to go on
from. A part is created and never replaced, so of two builds that go on from the same point one fails at its next part.

The lifetime is bounded: the build that commits removes its parts, and every build removes those in its bucket whose last sign
of life is `KEPT_S` ago. Nothing of it is needed to read the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any, Final

import blake3
import zstandard

from client.errors import Forbidden, ObjectNotFound, PreconditionFailed
from client.manifest import Ref
from client.objects import ObjectStore
from client.record import ObjectInfo
from loader.build_ray import RayWriter
from loader.errors import BuildUnresumable
from loader.order import lane_permutation
from loader.staging import LaneProgress
from loader.writer import ShardWriter

__all__ = ["BUILDS_PREFIX", "KEPT_S", "BuildJournal", "Left", "Start", "fingerprint", "remove_expired"]

BUILDS_PREFIX: Final = ".builds/"
KEPT_S: Final = 7 * 24 * 3600.0
"""How long parts are kept after the last one of their build."""
MAX_DESCRIPTION_BYTES: Final = 1 << 30
_FORMAT: Final = 1
_KEY: Final = "forebay-build"
_NUMBER_DIGITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where in the input some rows begin: the number of the piece, its place, and the number of its first row."""

    piece: int
    place: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What an earlier build has left: what is durable, and where to go on reading."""

    lanes: tuple[LaneProgress, ...]
    start: Start


def fingerprint(value: Mapping[str, Any]) -> str:
    """A short name for the arguments of a build, given as what JSON holds."""
    text = json.dumps({"format": _FORMAT, **value}, sort_keys=True, separators=(",", ":"))
    return blake3.blake3(text.encode()).hexdigest(length=16)


class BuildJournal:
    """The parts of one build. Used by one thread.

    Parameters
    ----------
    fingerprint : str
        Of its arguments.
    """

    def __init__(self, store: ObjectStore, bucket: str, key: str, *, fingerprint: str) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = f"{BUILDS_PREFIX}{key}/{fingerprint}/"
        self._num_parts = 0
        self._told: list[tuple[int, int]] = []
        self._rows: list[int] = []

    def load(self) -> Left | None:
        """What is there to go on from.

        Raises
        ------
        BuildUnresumable
            If a part is missing, or can't be read.
        """
        parts = []
        for number, info in enumerate(self._store.walk(self._bucket, prefix=self._prefix)):
            if info.key != self._part_key(number):
                raise self._unresumable(f"the part {self._part_key(number)} is missing")
            parts.append(self._read(info))
            self._count(parts[-1].lanes)
        self._num_parts = len(parts)
        return Left(lanes=_joined(parts), start=parts[-1].start) if parts else None

    def add(self, writer: ShardWriter | RayWriter, starts: Sequence[Start]) -> Start | None:
        """Name what `writer` has stored since the last part.

        Parameters
        ----------
        starts : sequence of Start
            Where pieces began that were written, ascending; those since the last answer are enough.

        Returns
        -------
        Start or None
            Where a build that goes on would begin to read; None if there was nothing to name.

        Raises
        ------
        BuildUnresumable
            If another build has gone on from the same point meanwhile.
        """
        lanes = writer.progress(self._told)
        refs = [ref for lane in lanes for ref in lane.refs]
        if not refs:
            return None
        self._count(lanes)
        missing = self._first_missing_row()
        start = next(start for start in reversed(starts) if start.row <= missing)
        description = zstandard.compress(_encode(lanes, start))
        described = {"format": _FORMAT, "description_bytes": len(description)}
        try:
            writer.name_part(
                self._part_key(self._num_parts),
                refs,
                description,
                metadata={_KEY: json.dumps(described, separators=(",", ":"))},
            )
        except PreconditionFailed as exc:
            raise BuildUnresumable(
                f"{self._part_key(self._num_parts)} is there already: the same build is under way elsewhere; end one of them"
            ) from exc
        self._num_parts += 1
        return start

    def discard(self) -> None:
        """Remove all parts."""
        _remove(self._store, list(self._store.walk(self._bucket, prefix=self._prefix)))

    def _count(self, lanes: Sequence[LaneProgress]) -> None:
        told, rows = self._told or [(0, 0)] * len(lanes), self._rows or [0] * len(lanes)
        self._told = [
            (refs + len(lane.refs), blocks + lane.num_blocks) for (refs, blocks), lane in zip(told, lanes, strict=True)
        ]
        self._rows = [done + lane.num_rows for done, lane in zip(rows, lanes, strict=True)]

    def _first_missing_row(self) -> int:
        num_lanes = len(self._rows)
        places = enumerate(lane_permutation(num_lanes).tolist())
        return min(int(self._rows[lane]) * num_lanes + place for place, lane in places)

    def _part_key(self, number: int) -> str:
        return f"{self._prefix}{number:0{_NUMBER_DIGITS}}"

    def _read(self, info: ObjectInfo) -> Left:
        try:
            described = json.loads(info.metadata[_KEY])
            size = int(described["description_bytes"])
            if described["format"] != _FORMAT or not 0 < size <= min(info.size, MAX_DESCRIPTION_BYTES):
                raise ValueError(f"format {described['format']}, a description of {size} bytes")
            packed = self._store.read(info, start=info.size - size)
            return _decode(zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_DESCRIPTION_BYTES))
        except (KeyError, TypeError, ValueError, zstandard.ZstdError) as exc:
            raise self._unresumable(f"the part {info.key} can't be read: {exc!r}") from exc

    def _unresumable(self, what: str) -> BuildUnresumable:
        return BuildUnresumable(
            f"{what}; `forebay rm -r {self._bucket}/{self._prefix}` removes what is left, and the build begins anew"
        )


def remove_expired(store: ObjectStore, bucket: str, *, now_s: float) -> int:
    """Remove the parts of builds that were given up long ago; how many that were.

    Whose token does not allow it leaves that to the next build.
    """
    try:
        return _remove_expired(store, bucket, now_s=now_s)
    except Forbidden:
        return 0


def _remove_expired(store: ObjectStore, bucket: str, *, now_s: float) -> int:
    removed = 0
    for _, parts in groupby(store.walk(bucket, prefix=BUILDS_PREFIX), key=lambda info: info.key.rpartition("/")[0]):
        build = list(parts)
        if max(info.record.created_s for info in build) < now_s - KEPT_S:
            _remove(store, build)
            removed += len(build)
    return removed


def _remove(store: ObjectStore, parts: Sequence[ObjectInfo]) -> None:
    # The last first: what is left, if this is interrupted, is the beginning of a build, and not one with a gap.
    for info in reversed(parts):
        try:
            store.delete(info.bucket, info.key, if_match=info.etag)
        except (ObjectNotFound, PreconditionFailed):
            continue  # Somebody else was faster.


def _joined(parts: Sequence[Left]) -> tuple[LaneProgress, ...]:
    """The progress of all parts together, lane by lane."""
    return tuple(
        LaneProgress(
            group=lanes[0].group,
            refs=tuple(chain.from_iterable(lane.refs for lane in lanes)),
            numbers=tuple(chain.from_iterable(lane.numbers for lane in lanes)),
            num_blocks=sum(lane.num_blocks for lane in lanes),
            num_rows=sum(lane.num_rows for lane in lanes),
        )
        for lanes in zip(*(part.lanes for part in parts), strict=True)
    )


def _encode(lanes: Sequence[LaneProgress], start: Start) -> bytes:
    described = [
        {
            "group": lane.group,
            "refs": [ref.pack().hex() for ref in lane.refs],
            "numbers": lane.numbers,
            "num_blocks": lane.num_blocks,
            "num_rows": lane.num_rows,
        }
        for lane in lanes
    ]
    return json.dumps({"start": asdict(start), "lanes": described}, sort_keys=True, separators=(",", ":")).encode()


def _decode(data: bytes) -> Left:
    value = json.loads(data)
    return Left(lanes=tuple(_lanes(value["lanes"])), start=Start(**value["start"]))


def _lanes(value: Sequence[Mapping[str, Any]]) -> Iterator[LaneProgress]:
    for lane in value:
        refs = tuple(Ref.unpack(bytes.fromhex(text)) for text in lane["refs"])
        yield LaneProgress(**{**lane, "refs": refs, "numbers": tuple(lane["numbers"])})
