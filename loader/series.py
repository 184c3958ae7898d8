"""A series: objects that follow each other under one name, such as the checkpoints of a run or the versions of a model.

Theory of operation
-------------------
The member of step 7 of ``forebay://models/llama`` is the object ``forebay://models/llama/step-000000000007``; whoever saves
it commits it with one compare-and-swap. A *name*, such as ``current``, is a second name of a member (`ObjectStore.copy`): the
record is copied, and no byte is. So readers open ``forebay://models/llama/current`` like any object and see one member or the
next, never a mixture; a watch tells them when it changes; and what has a name stays readable after its step was pruned. Members
share the chunks that did not change between them; garbage collection frees those that no member and no name refers to.

This module knows no tensors: datasets and files make series just as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from client.errors import ObjectNotFound, PreconditionFailed
from client.names import check_key, format_url, parse_url
from client.objects import ObjectStore
from client.record import ObjectInfo
from loader.errors import InvalidOption
from loader.store_user import StoreUser

__all__ = ["Member", "Series"]

_STEP: Final = re.compile(r"step-(\d{12})")
_MAX_STEP: Final = 10**12 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a series.

    Attributes
    ----------
    step : int
        Which one.
    info : ObjectInfo
        Of its object.
    names : tuple of str
        Names that the same content has beside it.
    """

    step: int
    info: ObjectInfo
    names: tuple[str, ...] = ()


class Series(StoreUser):
    """A series in the store. Thread-safe; usable as a context manager.

    Parameters
    ----------
    url : str
        ``forebay://bucket/key``, without a step.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile.
    client : ObjectStore, optional
        Used instead of one made from `endpoints`.
    """

    def __init__(self, url: str, *, endpoints: str | list[str] | None = None, client: ObjectStore | None = None) -> None:
        self._bucket, self._key = parse_url(url)
        super().__init__(client, endpoints)

    def url_of(self, step: int) -> str:
        """Where the member of a step is saved: give it to `save_tensors`, `CheckpointWriter` or `ShardWriter`."""
        if not 0 <= step <= _MAX_STEP:
            raise InvalidOption(f"step={step}: expected 0 to {_MAX_STEP}")
        return format_url(self._bucket, f"{self._key}/step-{step:012d}")

    def url_of_name(self, name: str) -> str:
        """Where the member of a name is read."""
        if _STEP.fullmatch(name) or "/" in name or not name:
            raise InvalidOption(f"{name!r} can't be a name in a series: it is empty, has a '/', or is that of a step")
        return format_url(self._bucket, check_key(f"{self._key}/{name}"))

    def members(self) -> list[Member]:
        """All members, the oldest step first, as they are at one revision. Raises `BucketNotFound`."""
        steps: dict[int, ObjectInfo] = {}
        names: dict[str, list[str]] = {}
        for info in self._store.walk(self._bucket, prefix=f"{self._key}/"):
            last = info.key.removeprefix(f"{self._key}/")
            match = _STEP.fullmatch(last)
            if match is not None:
                steps[int(match[1])] = info
            elif "/" not in last:
                names.setdefault(info.record.content.digest, []).append(last)
        return [
            Member(step=step, info=info, names=tuple(sorted(names.get(info.record.content.digest, ()))))
            for step, info in sorted(steps.items())
        ]

    def latest(self) -> Member | None:
        """The member of the highest step; None if there is none yet."""
        return next(reversed(self.members()), None)

    def publish(self, step: int, *, name: str = "current") -> ObjectInfo:
        """Have `name` mean the member of `step` from now on. No byte moves.

        Raises
        ------
        ObjectNotFound
            If there is no such step.
        """
        source, target = parse_url(self.url_of(step)), parse_url(self.url_of_name(name))
        return self._store.copy(*source, *target)

    def withdraw(self, name: str) -> None:
        """Remove a name; raises `ObjectNotFound`. The member of the step stays, if it was not pruned."""
        self._store.delete(*parse_url(self.url_of_name(name)))

    def watch(self, name: str = "current") -> Iterator[ObjectInfo | None]:
        """What `name` means, now if it means anything, and then whenever that changes; None when it was withdrawn."""
        bucket, key = parse_url(self.url_of_name(name))
        after = self._store.list(bucket, prefix=key, limit=1).revision
        try:
            info = self._store.stat(bucket, key)
            after = max(after, info.version)
            yield info
        except ObjectNotFound:
            pass
        for changed, now in self._store.watch(bucket, prefix=key, after=after):
            if changed == key:
                yield now

    def prune(self, *, keep_last: int, keep_every: int | None = None, dry_run: bool = False) -> list[Member]:
        """Remove the members of steps that are no longer wanted. What has a name stays readable under it.

        Parameters
        ----------
        keep_last : int
            Keep so many of the highest steps; 1 or more.
        keep_every : int, optional
            Keep also steps that are multiples of this.
        dry_run : bool
            Remove nothing, only say what would be.

        Returns
        -------
        list of Member
            What was removed. A step that was saved anew meanwhile is not.
        """
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise InvalidOption(f"keep_last={keep_last} and keep_every={keep_every}: expected 1 or more")
        members = self.members()
        unwanted = [member for member in members[:-keep_last] if keep_every is None or member.step % keep_every]
        return unwanted if dry_run else [member for member in unwanted if self._remove(member)]

    def _remove(self, member: Member) -> bool:
        try:
            self._store.delete(self._bucket, member.info.key, if_match=member.info.etag)
        except (ObjectNotFound, PreconditionFailed):
            return False  # Somebody else pruned it, or saved it anew.
        return True
