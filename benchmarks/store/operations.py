"""What a client repeats: each operation runs on any connection, so that every side does the same.

Bodies are random bytes that do not compress. Each PUT sends new ones, in every chunk of it, under a new name: equal bytes would
not be written again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from benchmarks.store.stores import Connection, ForebayConnection

__all__ = ["MIB", "Get", "GetMany", "Mixed", "Operation", "Put", "PutMany", "new_body", "renew"]

MIB = 1024 * 1024
_CHUNK_BYTES = 8 * MIB
_RENEWED_BYTES = 16
_MIXED_SIZES = {4096: 60, 64 * 1024: 25, MIB: 10, 8 * MIB: 5}  # size in bytes to how often, of 100


class Operation(Protocol):
    """One kind of call."""

    @property
    def call_bytes(self) -> int:
        """How many bytes one call moves."""
        ...

    @property
    def call_objects(self) -> int:
        """How many objects one call moves."""
        ...

    @property
    def objects(self) -> Mapping[str, int]:
        """Keys and sizes that the store has to hold before."""
        ...

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        """What makes one call; `client` is the number of the client that repeats it, and its seed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """GET of one object into a buffer that is used again, drawn at random from `num_objects`."""

    size_bytes: int
    num_objects: int
    call_objects: int = 1

    @property
    def call_bytes(self) -> int:
        return self.size_bytes

    @property
    def objects(self) -> Mapping[str, int]:
        return {f"{self.size_bytes}-{number}": self.size_bytes for number in range(self.num_objects)}

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        keys, draws = list(self.objects), random.Random(client)
        buffer = memoryview(bytearray(self.size_bytes))
        return lambda: connection.get_into(draws.choice(keys), buffer)


@dataclass(frozen=True, slots=True, kw_only=True)
class GetMany(Get):
    """GET of all the objects in one call, in a random order."""

    call_objects: int = 1000

    @property
    def call_bytes(self) -> int:
        return self.size_bytes * self.call_objects

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        assert isinstance(connection, ForebayConnection)
        keys, draws = list(self.objects), random.Random(client)
        return lambda: connection.get_many(draws.sample(keys, self.call_objects))


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """PUT of one object."""

    size_bytes: int
    call_objects: int = 1

    @property
    def call_bytes(self) -> int:
        return self.size_bytes * self.call_objects

    @property
    def objects(self) -> Mapping[str, int]:
        return {}

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        body, numbers = new_body(self.size_bytes), count()

        def step() -> None:
            renew(body)
            connection.put(f"put-{client}-{next(numbers)}", body)

        return step


@dataclass(frozen=True, slots=True, kw_only=True)
class PutMany(Put):
    """PUT of several objects in one call."""

    call_objects: int = 1000

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        assert isinstance(connection, ForebayConnection)
        bodies, numbers = [new_body(self.size_bytes) for _ in range(self.call_objects)], count()

        def step() -> None:
            for body in bodies:
                renew(body)
            connection.put_many([(f"put-{client}-{next(numbers)}", body) for body in bodies])

        return step


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Nine GETs to one PUT of objects of 4 KiB to 8 MiB, most of them small; a PUT replaces an object by new bytes."""

    objects_per_size: int
    put_share: float = 0.1
    call_objects: int = 1

    @property
    def call_bytes(self) -> int:
        return sum(size * share for size, share in _MIXED_SIZES.items()) // sum(_MIXED_SIZES.values())

    @property
    def objects(self) -> Mapping[str, int]:
        return {f"{size}-{number}": size for size in _MIXED_SIZES for number in range(self.objects_per_size)}

    def prepare(self, connection: Connection, *, client: int) -> Callable[[], None]:
        draws, buffer = random.Random(client), memoryview(bytearray(max(_MIXED_SIZES)))
        bodies, shares = {size: new_body(size) for size in _MIXED_SIZES}, list(_MIXED_SIZES.values())

        def step() -> None:
            (size,) = draws.choices(list(bodies), shares)
            key = f"{size}-{draws.randrange(self.objects_per_size)}"
            if draws.random() < self.put_share:
                renew(bodies[size])
                connection.put(key, bodies[size])
            else:
                connection.get_into(key, buffer[:size])

        return step


def new_body(size_bytes: int) -> bytearray:
    """Bytes unlike those of any other call; every chunk of them differs from the others."""
    tile = os.urandom(min(size_bytes, _CHUNK_BYTES))
    body = bytearray(tile * -(-size_bytes // len(tile)))[:size_bytes]
    renew(body)
    return body


def renew(body: bytearray) -> None:
    """Make every chunk one that was never stored, by its first bytes."""
    for start in range(0, len(body), _CHUNK_BYTES):
        body[start : start + _RENEWED_BYTES] = os.urandom(_RENEWED_BYTES)
