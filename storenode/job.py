"""A job as its record in the metadata tells it; `storenode.jobs` runs them. Values only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from client.errors import MetadataCorrupt
from storenode.metastore import KeyValue

__all__ = ["REBALANCE", "Job", "JobState", "decode_job"]

# The kind that follows a change of the layout. It belongs to no node, and only another change ends it.
REBALANCE = "rebalance"

JobState = Literal["running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as its record tells it.

    Attributes
    ----------
    id : str
        Random.
    kind : str
        What is done, such as ``scrub``.
    node_id : str
        Whose disk it works on.
    state : str
        running, done, failed or cancelled.
    cancelling : bool
        Whether someone asked for its end.
    cursor : str
        Where it would go on; only its kind of work understands it.
    num_chunks, size_bytes : int
        Looked at so far.
    total_chunks : int or None
        How many there will be, where that is known.
    detail : str
        What was found, or why it failed.
    started_s, updated_s : float
        Seconds since 1970.
    """

    id: str
    kind: str
    node_id: str
    state: JobState
    cancelling: bool
    cursor: str
    num_chunks: int
    total_chunks: int | None
    size_bytes: int
    detail: str
    started_s: float
    updated_s: float

    def to_json(self) -> dict[str, Any]:
        """The job as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            return cls(**{name: value[name] for name in cls.__slots__})
        except (KeyError, TypeError) as exc:
            raise MetadataCorrupt(f"the record of a job can't be read: {exc!r}") from exc


def decode_job(item: KeyValue) -> Job:
    """The job in `item`; raises `MetadataCorrupt`, naming the key."""
    try:
        return Job.from_json(json.loads(item.value))
    except (ValueError, AttributeError) as exc:
        raise MetadataCorrupt(f"the record at {item.key!r} is no job: {exc}", key=item.key) from exc
