"""Tokens: each client has one for what it does and no more, and gets another before it ends; and one who tries what it may not.

Some tokens last for a minute or two, and a clock that is hours ahead refuses them; others outlast every such fault.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from client.client import Client
from client.errors import Forbidden, StoreError, Unauthenticated
from storenode.grants import EVERY, Grant, Scope, Verb
from storenode.secret import Secret
from storenode.tokens import mint
from tests.soak.clients import BUCKET, hot_key
from tests.soak.clocks import WallClock
from tests.soak.history import History, now
from tests.soak.values import value

__all__ = ["LEEWAY_S", "Pass", "Renewed", "Tenant", "Warden"]

LEEWAY_S = 2.0  # of the nodes
SHORT_S, LONG_S = 90.0, 2 * 24 * 3600.0
RENEWED_S = (15.0, 45.0)
ENDS_S = 5.0
LONG_AGO_S = -12 * 3600.0  # by every clock
ROUND_S = 1.0  # A token's times are whole seconds.
REFUSED = (Forbidden, Unauthenticated)


class Pass:
    """What somebody may do; makes the tokens that say so."""

    def __init__(self, secret: Secret, *verbs: Verb, bucket: str = BUCKET, prefix: str = "") -> None:
        self._secret = secret
        self._scope = Scope.of(bucket=bucket, verbs=verbs, prefix=prefix)

    @classmethod
    def of_operator(cls, secret: Secret) -> Pass:
        """All that there is."""
        return cls(secret, "read", "write", "delete", "admin", bucket=EVERY)

    def token(self, *, lasts_s: float = LONG_S) -> str:
        """A token that ends so many seconds from now."""
        now_s = time.time()
        return mint(self._secret, Grant(subject="soak", scopes=(self._scope,), expires_s=now_s + lasts_s), now_s=now_s)


class Renewed:
    """The token of one client; call it for the one that is good now."""

    def __init__(self, allowed: Pass, history: History, *, rng: random.Random) -> None:
        self._allowed = allowed
        self._history = history
        self._rng = rng
        self._due_s = 0.0
        self._token = ""

    def __call__(self) -> str:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._rng.uniform(*RENEWED_S)
            self._token = self._allowed.token(lasts_s=self._rng.choice((SHORT_S, LONG_S)))
            self._history.count("token renewed")
        return self._token


class Tenant:
    """A client by its tokens: another `Client` for each of them, which remembers nothing of the last. A context manager."""

    def __init__(self, endpoints: Sequence[str], tokens: Renewed) -> None:
        self._endpoints = list(endpoints)
        self._tokens = tokens
        self._token = ""
        self._client: Client | None = None

    def __enter__(self) -> Tenant:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def __call__(self) -> Client:
        token = self._tokens()
        if self._client is None or token != self._token:
            self.__exit__()
            self._token, self._client = token, Client(self._endpoints, token=token)
        return self._client


class Warden:
    """Tries what its tokens do not allow, and what they allow no more. Whatever succeeds of that breaks a promise."""

    def __init__(
        self, endpoints: Sequence[str], secret: Secret, clocks: Sequence[WallClock], history: History, *, rng: random.Random
    ) -> None:
        self._endpoints = list(endpoints)
        self._clocks = clocks
        self._history = history
        self._rng = rng
        self._stack = ExitStack()
        # Has a scope for writing, so that it gets as far as to the name.
        self._elsewhere = self._open(Pass(secret, "read", "write", "delete", prefix="elsewhere/").token())
        self._reader = self._open(Pass(secret, "read").token())
        self._ended = self._open(Pass.of_operator(secret).token(lasts_s=LONG_AGO_S))
        self._ending = Pass(secret, "read", "write", "delete", prefix="warden/")
        self._num = 0

    def __enter__(self) -> Warden:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> None:
        """One attempt."""
        who, client = self._rng.choice(
            [("reader", self._reader), ("elsewhere", self._elsewhere), ("long ended", self._ended), ("ending", None)]
        )
        if client is None:
            self._outlive()
            return
        if who == "reader":
            self._attempt("reader token read", lambda: client.list(BUCKET, limit=3), allowed=True)
        calls = self._writes(client) + ([] if who == "reader" else self._reads(client))
        self._attempt(f"{who} token", self._rng.choice(calls), allowed=False)

    def _writes(self, client: Client) -> list[Callable[[], object]]:
        key, name = hot_key(self._rng), self._name()
        return [
            lambda: client.put(BUCKET, key, b"by one who may not"),
            lambda: client.put_many([(BUCKET, key, b"by one who may not"), (BUCKET, f"hot/{name}", b"nor this")]),
            lambda: client.delete(BUCKET, key),
            lambda: client.snapshots.create(BUCKET, name),
            lambda: client.buckets.create(name),
            lambda: client.copy(BUCKET, key, BUCKET, f"hot/{name}"),
        ]

    def _reads(self, client: Client) -> list[Callable[[], object]]:
        key = hot_key(self._rng)
        return [
            lambda: client.get(BUCKET, key),
            lambda: client.stat(BUCKET, key, consistency="eventual"),
            lambda: client.get_many([(BUCKET, key, 0, None)]),
            lambda: client.list(BUCKET, limit=3),
        ]

    def _outlive(self) -> None:
        """A token that is good, until it is not."""
        end_s = time.monotonic() + ENDS_S
        with Client(self._endpoints, token=self._ending.token(lasts_s=ENDS_S)) as client:
            key = f"warden/{self._name()}"
            self._attempt("ending token write", lambda: client.put(BUCKET, key, value(key, 200)), allowed=True)
            time.sleep(max(0.0, end_s + LEEWAY_S + ROUND_S - time.monotonic()))
            called = now()
            done = self._succeeds("ended token write", lambda: client.put(BUCKET, key, b"too late"))
            # By a clock that is behind it was in time.
            if done and not any(clock.was_behind(since_ns=called) for clock in self._clocks):
                self._history.violation(f"{key} was written with a token that had ended")

    def _attempt(self, what: str, call: Callable[[], object], *, allowed: bool) -> None:
        if self._succeeds(what, call) and not allowed:
            self._history.violation(f"{what} did what it does not allow")

    def _succeeds(self, what: str, call: Callable[[], object]) -> bool:
        try:
            call()
        except REFUSED:
            self._history.count(f"{what} refused")
        except (StoreError, OSError) as error:
            self._history.failed(what, error)
        else:
            self._history.count(f"{what} ok")
            return True
        return False

    def _name(self) -> str:
        self._num += 1
        return f"warden-{self._num}"

    def _open(self, token: str) -> Client:
        return self._stack.enter_context(Client(self._endpoints, token=token))
