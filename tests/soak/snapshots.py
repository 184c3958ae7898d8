"""Snapshots: made, read and given up while all else goes on. What one shows stays exactly the same until it is given up.

It shows one moment between its call and its return: what was acknowledged before is in it, and of the contended keys it is a
read of all of them at that moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client.client import Client
from client.errors import CursorExpired, ObjectNotFound, SnapshotNotFound, StoreError
from client.record import ObjectInfo
from tests.soak.clients import BUCKET, HOT, TAG, hot_keys
from tests.soak.history import History, Seen, now
from tests.soak.ledger import Ledger
from tests.soak.values import SHARED, WrongBytes, read

__all__ = ["Snapshotter", "check_snapshots"]

MAX_TAKEN = 3
NUM_READ_AT_THE_END = 300


@dataclass(slots=True, kw_only=True)
class _Taken:
    """One snapshot.

    Attributes
    ----------
    called, returned : int
        When it was made.
    held : dict
        Ledger entries that it must show, and their versions.
    gone : set of str
        Those that it must not show.
    shown : dict
        What it showed when it was first listed.
    """

    name: str
    called: int
    returned: int
    version: int
    held: Mapping[str, int]
    gone: frozenset[str]
    shown: dict[str, ObjectInfo] = field(default_factory=dict)


class Snapshotter:
    """Makes, reads and gives up snapshots of the bucket."""

    def __init__(self, clients: Callable[[], Client], ledger: Ledger, *, name: str, rng: random.Random) -> None:
        self._clients = clients
        self._client = clients()
        self._ledger = ledger
        self._history = ledger.history
        self._name = name
        self._rng = rng
        self._num = 0
        self._taken: list[_Taken] = []
        self._leaving: list[str] = []  # Their making or their end was asked for, and what became of it is not known.

    def step(self) -> None:
        """One of these."""
        self._client = self._clients()
        kind = self._rng.random()
        if self._leaving:
            self._give_up(self._leaving[0])
        elif kind < 0.1 and len(self._taken) < MAX_TAKEN:
            self._make()
        elif kind < 0.15 and self._taken:
            taken = self._taken.pop(self._rng.randrange(len(self._taken)))
            self._leaving.append(taken.name)
            self._give_up(taken.name)
        elif self._taken:
            taken = self._rng.choice(self._taken)
            if kind < 0.3 or not taken.shown:
                self._list(taken)
            else:
                self._read(taken, self._rng.choice(list(taken.shown)))

    def finish(self, client: Client) -> None:
        """Once nothing is broken: look at all that are left, and give them up."""
        self._client = client
        for taken in self._taken:
            self._list(taken)
            for key in self._rng.sample(sorted(taken.shown), min(NUM_READ_AT_THE_END, len(taken.shown))):
                self._read(taken, key)
        self._leaving += [taken.name for taken in self._taken]
        for name in list(self._leaving):
            self._give_up(name)
        if self._leaving:
            self._history.violation(f"the snapshots {self._leaving} can't be given up although nothing is broken")

    def _make(self) -> None:
        self._num += 1
        name = f"{self._name}-{self._num}"
        before = self._ledger.held()
        gone = self._ledger.all_gone()
        called = now()
        try:
            made = self._client.snapshots.create(BUCKET, name)
        except (StoreError, OSError) as error:
            self._history.failed("snapshot create", error)
            self._leaving.append(name)
            return
        returned = now()
        # Held before and after: no delete of it was asked for until it was made.
        held = {entry.key: entry.version for entry in before if entry.state == "held"}
        taken = _Taken(name=name, called=called, returned=returned, version=made.version, held=held, gone=gone)
        self._taken.append(taken)
        self._history.count("snapshot create ok")
        self._list(taken)

    def _list(self, taken: _Taken) -> None:
        try:
            shown = {info.key: info for info in self._client.walk(BUCKET, snapshot=taken.name)}
        except CursorExpired:
            self._history.count("snapshot list expired")
        except SnapshotNotFound as error:
            self._history.violation(f"{self._name} lists {taken.name}, which was not given up: {error}")
        except (StoreError, OSError) as error:
            self._history.failed("snapshot list", error)
        else:
            self._history.count("snapshot list ok")
            if taken.shown:
                self._compare(taken, shown)
            else:
                taken.shown = shown
                self._check_first(taken)

    def _compare(self, taken: _Taken, shown: Mapping[str, ObjectInfo]) -> None:
        if shown != taken.shown:
            keys = sorted(key for key in shown.keys() | taken.shown.keys() if shown.get(key) != taken.shown.get(key))
            was, found = taken.shown.get(keys[0]), shown.get(keys[0])
            self._history.violation(
                f"{taken.name} at version {taken.version} shows {len(keys)} keys otherwise than before: "
                f"{keys[0]} was {was} and is {found}"
            )

    def _check_first(self, taken: _Taken) -> None:
        late = [info.key for info in taken.shown.values() if info.version > taken.version]
        wrong = [key for key, version in taken.held.items() if key not in taken.shown or taken.shown[key].version != version]
        undead = [key for key in taken.gone if key in taken.shown]
        for what, keys in (("is newer", late), ("is not as it was acknowledged", wrong), ("was deleted", undead)):
            if keys:
                self._history.violation(f"{taken.name} at version {taken.version}: {what}: {keys[:3]} of {len(keys)}")
        for key in hot_keys(taken.called):
            info = taken.shown.get(key)
            seen = None if info is None else Seen(tag=info.record.metadata[TAG], etag=info.etag, version=info.version)
            self._history.read(self._name, key, taken.called, seen, what="snapshot hot key", returned=taken.returned)

    def _read(self, taken: _Taken, key: str) -> None:
        expected = taken.shown[key]
        try:
            info = self._client.stat(BUCKET, key, snapshot=taken.name)
            data = self._client.get(BUCKET, key, snapshot=taken.name)
            written = read(data)
        except (StoreError, OSError) as error:
            if isinstance(error, ObjectNotFound | SnapshotNotFound):
                self._history.violation(f"{self._name} does not find {key} in {taken.name}, which shows it: {error}")
            self._history.failed("snapshot read", error)
        except WrongBytes as error:
            self._history.violation(f"{self._name} read {key} in {taken.name}: {error}")
        else:
            self._history.count("snapshot read ok")
            of_hot = key.startswith(HOT)
            right = expected.record.metadata[TAG] if of_hot else key
            named = written in (None, right) or (of_hot and str(written).startswith(SHARED))
            if info != expected or len(data) != expected.size or not named:
                self._history.violation(
                    f"{key} in {taken.name} is {info} with {len(data)} bytes of {written}; it was {expected} when first seen"
                )

    def _give_up(self, name: str) -> None:
        try:
            self._client.snapshots.delete(BUCKET, name)
        except SnapshotNotFound:
            pass  # It was never made, or the answer to giving it up was lost.
        except (StoreError, OSError) as error:
            self._history.failed("snapshot delete", error)
            return
        self._leaving.remove(name)
        self._history.count("snapshot delete ok")
        try:
            self._client.list(BUCKET, limit=1, snapshot=name)
        except SnapshotNotFound:
            return
        except (StoreError, OSError) as error:
            self._history.failed("snapshot list", error)
            return
        self._history.violation(f"{name} was given up and can still be read")


def check_snapshots(client: Client, snapshotter: Snapshotter, history: History) -> None:
    """The last ones show what they did, and once they are given up nothing is kept that only they showed."""
    snapshotter.finish(client)
    client.snapshots.prune(BUCKET)
    current = {(info.key, info.version) for info in client.walk(BUCKET)}
    older = [info for info in client.walk(BUCKET, versions=True) if (info.key, info.version) not in current]
    if older:
        history.violation(f"{len(older)} versions are kept for no snapshot, such as {older[0]}")
    history.count("objects at the end", len(current))
