"""Clients that contend for a few keys with conditional writes, each a thread with a `Client` of its own.

Every write has a tag of its own, in the object's metadata and, unless its body is one that several share, in its bytes. Whoever
reads either knows which write it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from client.catalog import Consistency
from client.client import Client
from client.errors import ObjectNotFound, StoreError
from client.record import Condition, ObjectInfo
from tests.soak.history import History, Seen, now
from tests.soak.values import SHARED, WrongBytes, read, shared, size_of, value

__all__ = ["BUCKET", "HOT", "TAG", "Contender", "choose_condition", "hot_key", "hot_keys"]

BUCKET = "soak"
HOT = "hot/"
NUM_HOT = 5
# Each key is contended for so long: what can have happened is looked for in histories that end.
GENERATION_S = 240
TAG = "tag"


class Contender:
    """One client. Call `step` again and again.

    Parameters
    ----------
    clients : callable
        The client to use now, nobody else's; another one remembers nothing of the last.
    name : str
        Of this client, in the history.
    rng : random.Random
        Makes all its choices.
    """

    def __init__(self, clients: Callable[[], Client], history: History, *, name: str, rng: random.Random) -> None:
        self._clients = clients
        self._client = clients()
        self._history = history
        self._name = name
        self._rng = rng
        self._num_writes = 0
        self._seen: dict[str, Seen] = {}
        self._gone: set[str] = set()
        self._chunk_bytes = self._client.config.chunk_size_bytes

    def step(self) -> None:
        """One call."""
        if (client := self._clients()) is not self._client:
            self._client = client
            self._seen.clear()
            self._gone.clear()
        key = hot_key(self._rng)
        steps: list[Callable[[str], None]] = [self._put, self._delete, self._stat, self._get, self._read, self._stat_weakly]
        (chosen,) = self._rng.choices(steps, weights=[5, 1, 2, 3, 2, 2])
        chosen(key)

    def _put(self, key: str) -> None:
        self._num_writes += 1
        tag = f"{self._name}-{self._num_writes}"
        data = shared(self._rng) if self._rng.random() < 0.2 else value(tag, size_of(self._rng, chunk_bytes=self._chunk_bytes))
        condition, asked = self._condition(key)
        called = now()
        try:
            info = self._client.put(
                BUCKET,
                key,
                data,
                if_match=condition.if_match,
                if_none_match=condition.if_none_match,
                metadata={TAG: tag},
            )
        except (StoreError, OSError) as error:
            self._history.not_written(self._name, "put", key, called, tag, asked, error)
        else:
            self._history.wrote(self._name, "put", key, called, self._remember(info), asked)

    def _delete(self, key: str) -> None:
        condition, asked = self._condition(key, new=False)
        called = now()
        try:
            self._client.delete(BUCKET, key, if_match=condition.if_match)
        except (StoreError, OSError) as error:
            self._history.not_written(self._name, "delete", key, called, None, asked, error)
        else:
            self._history.wrote(self._name, "delete", key, called, None, asked)
            self._gone.add(key)

    def _stat(self, key: str) -> None:
        called = now()
        try:
            info = self._client.stat(BUCKET, key)
        except ObjectNotFound:
            self._history.read(self._name, key, called, None, what="stat")
            self._gone.add(key)
        except (StoreError, OSError) as error:
            self._history.failed("stat", error)
        else:
            self._history.read(self._name, key, called, self._remember(info), what="stat")

    def _get(self, key: str) -> None:
        called = now()
        try:
            name = read(self._client.get(BUCKET, key))
        except ObjectNotFound:
            self._history.read(self._name, key, called, None)
        except WrongBytes as error:
            self._history.violation(f"{self._name} read {key}: {error}")
        except (StoreError, OSError) as error:
            self._history.failed("get", error)
        else:
            # No bytes, or those of several writes, do not tell which write it was.
            if name is not None and not name.startswith(SHARED):
                self._history.read_tag(self._name, key, called, name)

    def _stat_weakly(self, key: str) -> None:
        """At the levels below strong: no client goes back behind what it saw, or none is shown what never was."""
        level: Consistency = self._rng.choice(("session", "eventual"))
        known = self._seen.get(key)
        try:
            info = self._client.stat(BUCKET, key, consistency=level)
        except ObjectNotFound:
            self._history.count(f"{level} stat ok")
            return
        except (StoreError, OSError) as error:
            self._history.failed(f"{level} stat", error)
            return
        self._history.read_weakly(key, info.record.metadata[TAG], what=f"{level} stat")
        oldest = 0 if known is None or level == "eventual" else known.version + (key in self._gone)
        if info.version < oldest:
            self._history.violation(
                f"{self._name} read {key} version {info.version} at level session, having seen version {oldest} "
                f"{'deleted' if key in self._gone else ''}"
            )
        if level == "session":
            self._remember(info)

    def _read(self, key: str) -> None:
        """The bytes of one version, which may not be the current one any more when they are read."""
        called = now()
        try:
            info = self._client.stat(BUCKET, key)
            seen = self._remember(info)
            self._history.read(self._name, key, called, seen, what="stat")
            start = self._rng.randrange(info.size + 1) if self._rng.random() < 0.5 else 0
            data = self._client.read(info, start=start)
        except (StoreError, OSError) as error:
            self._history.failed("read", error)
            return
        expected = {value(seen.tag, info.size)[start:], *(value(f"{SHARED}{n}", info.size)[start:] for n in range(4))}
        if data not in expected:
            self._history.violation(f"{self._name} read {key} version {seen.version} from byte {start}: wrong bytes")
        self._history.count("read ok")

    def _condition(self, key: str, *, new: bool = True) -> tuple[Condition, Condition]:
        return choose_condition(self._rng, self._seen.get(key), new=new)

    def _remember(self, info: ObjectInfo) -> Seen:
        seen = Seen(tag=info.record.metadata[TAG], etag=info.etag, version=info.version)
        self._seen[info.key] = seen
        self._gone.discard(info.key)
        return seen


def hot_keys(called: int) -> list[str]:
    """The keys that clients contend for at a moment of the histories' clock."""
    return [f"{HOT}{called // (GENERATION_S * 10**9)}/{number}" for number in range(NUM_HOT)]


def hot_key(rng: random.Random) -> str:
    """One of those that they contend for now."""
    return rng.choice(hot_keys(now()))


def choose_condition(rng: random.Random, seen: Seen | None, *, new: bool) -> tuple[Condition, Condition]:
    """A condition, for the store and for the history, which knows writes by their tags."""
    kind = rng.random()
    if kind < 0.5 and seen is not None:
        return Condition(if_match=seen.etag), Condition(if_match=seen.tag)
    if kind < 0.75 and new:
        condition = Condition(if_none_match="*")
    elif kind < 0.8:
        condition = Condition(if_match="*")
    else:
        condition = Condition()
    return condition, condition
