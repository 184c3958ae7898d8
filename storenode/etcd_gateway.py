"""Calls to an etcd cluster through the JSON gateway of its members: failover, tokens, deadlines.

Any member answers for all. Calls go to the preferred one until it fails: refuses, breaks, is silent, or says that it has no
leader, which requests ask it to say (``hasleader``) instead of waiting for one. Then the next member is preferred, by
everybody. A round of failures is followed by another until the time is up, because an election takes a second or two.

What may not be repeated (a transaction) goes to another member only if the first one certainly did nothing. It is given the
whole time, others their share of it, so that a silent member does not use up the time of those after it. As commits read first,
it is a read that finds out about such a member.

With a user, calls carry a token, which members forget when it was not used for some minutes, or when they restart; then a new
one is asked for, once a call. Neither it nor the password is ever part of a message.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, TypeVar

from client.errors import MetadataUnavailable
from client.retry import Deadline
from client.wire import encode_json
from storenode.etcd_address import Endpoint, EtcdAddress
from storenode.etcd_connections import Connections, NoConnection, Reply
from storenode.etcd_wire import MAX_TXN_BODY_BYTES, UNAUTHENTICATED, UNAVAILABLE, Json, Rejected, close_page

__all__ = ["Gateway", "Stream"]

T = TypeVar("T")

_MAX_ERROR_BYTES = 64 * 1024
# etcd cuts the messages of a watch at the size of its requests.
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_ROUND_PAUSE_S = 0.1
_HEADERS = {"Content-Type": "application/json"}
_LEADER = {"Grpc-Metadata-hasleader": "true"}


class Stream:
    """An answer that comes message by message. Whoever has it closes it."""

    def __init__(self, reply: Reply, first: Json) -> None:
        self._reply = reply
        self.first = first

    def next(self, *, deadline: Deadline) -> Json | None:
        """The next message; None at the deadline, after which there is none. Raises `MetadataUnavailable` if it breaks."""
        try:
            return _next(self._reply, deadline=deadline)
        except TimeoutError:
            return None
        except Rejected as exc:
            raise exc.named() from exc
        except (OSError, HTTPException) as exc:
            raise MetadataUnavailable(f"a watch broke: {exc}") from exc

    def close(self) -> None:
        """End it."""
        self._reply.close()


class Gateway:
    """Thread-safe. Parameters are those of `storenode.etcd.EtcdMetaStore`."""

    def __init__(
        self,
        address: EtcdAddress,
        *,
        timeout_s: float,
        max_connections: int,
        user: str,
        password: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._connections = Connections(limit=max_connections, tls=tls)
        self._user = user
        self._password = password
        self._token = ""
        self._preferred = 0
        self._closed = threading.Event()

    @property
    def num_members(self) -> int:
        return len(self._address.endpoints)

    def call(
        self,
        path: str,
        message: Json,
        *,
        repeatable: bool = True,
        limit: int = MAX_TXN_BODY_BYTES,
        leader: bool = True,
        deadline: Deadline | None = None,
    ) -> Json:
        """The answer to a message.

        Parameters
        ----------
        repeatable : bool
            Whether it does no harm if two members do it.
        limit : int
            Most bytes of the answer, which is then the page of a range that ends early.
        leader : bool
            Whether a member without a leader is passed over.
        deadline : Deadline, optional
            Of several calls together; by default this one has ``timeout_s``.

        Raises
        ------
        Rejected
            etcd's error, other than that it is not available.
        MetadataUnavailable
            No answer in time, or the store was closed. If `repeatable`, nothing was changed, else that is unknown.
        """
        request = encode_json(message)

        def attempt(endpoint: Endpoint, deadline: Deadline) -> Json:
            reply = self._send(endpoint, path, request, leader=leader, deadline=deadline)
            try:
                body, is_whole = reply.body(limit=limit, deadline=deadline)
            finally:
                reply.close()
            return _document(body if is_whole else close_page(body))

        return self._patiently(path, attempt, repeatable=repeatable, deadline=deadline or Deadline(self._timeout_s))

    def watch(self, message: Json) -> Stream:
        """A watch that a member has begun; raises what `call` does."""
        request = encode_json({"create_request": message})

        def attempt(endpoint: Endpoint, deadline: Deadline) -> Stream:
            reply = self._send(endpoint, "/v3/watch", request, deadline=deadline)
            try:
                first = _next(reply, deadline=deadline)
                if first.get("canceled"):
                    # It can't tell a token that has expired from a user who may not.
                    raise Rejected(UNAUTHENTICATED, str(first.get("cancel_reason", "etcd canceled the watch")))
            except BaseException:
                reply.close()
                raise
            return Stream(reply, first)

        return self._patiently("/v3/watch", attempt, repeatable=True, deadline=Deadline(self._timeout_s))

    def close(self) -> None:
        """End all calls under way."""
        self._closed.set()
        self._connections.close()

    def _patiently(self, path: str, attempt: Callable[[Endpoint, Deadline], T], *, repeatable: bool, deadline: Deadline) -> T:
        share_s = self._timeout_s / self.num_members if repeatable else self._timeout_s
        failures: dict[Endpoint, str] = {}
        while True:
            for _ in self._address.endpoints:
                self._require_open()
                index = self._preferred
                endpoint = self._address.endpoints[index]
                try:
                    return self._with_token(attempt, endpoint, Deadline(min(share_s, deadline.remaining_s())))
                except (Rejected, OSError, HTTPException, ValueError) as exc:
                    if isinstance(exc, Rejected) and exc.code != UNAVAILABLE:
                        raise
                    self._require_open()
                    # What the end of the time cut short tells less than what was found before.
                    if deadline.remaining_s() or endpoint not in failures:
                        failures[endpoint] = str(exc) or repr(exc)
                    if index == self._preferred:
                        self._preferred = (index + 1) % self.num_members
                    if not repeatable and not _did_nothing(exc):
                        raise self._unavailable(path, failures, "; whether it happened is unknown") from exc
            if not deadline.remaining_s() or self._closed.wait(min(_ROUND_PAUSE_S, deadline.remaining_s())):
                self._require_open()
                raise self._unavailable(path, failures, f" within {self._timeout_s:g} s")

    def _with_token(self, attempt: Callable[[Endpoint, Deadline], T], endpoint: Endpoint, deadline: Deadline) -> T:
        token = self._token
        try:
            if self._user and not token:
                self._authenticate(endpoint, deadline)
            return attempt(endpoint, deadline)
        except Rejected as exc:
            if not (self._user and exc.token_expired):
                raise
        if token == self._token:  # else another thread has a new one
            self._authenticate(endpoint, deadline)
        return attempt(endpoint, deadline)

    def _authenticate(self, endpoint: Endpoint, deadline: Deadline) -> None:
        self._token = ""
        request = encode_json({"name": self._user, "password": self._password})
        reply = self._send(endpoint, "/v3/auth/authenticate", request, deadline=deadline)
        try:
            body, _ = reply.body(limit=_MAX_ERROR_BYTES, deadline=deadline)
        finally:
            reply.close()
        self._token = str(_document(body)["token"])

    def _send(self, endpoint: Endpoint, path: str, request: bytes, *, deadline: Deadline, leader: bool = True) -> Reply:
        """The reply to a request, unless it is an error."""
        token = self._token
        reply = self._connections.open(endpoint, deadline=deadline)
        try:
            headers = {**_HEADERS, **(_LEADER if leader else {}), **({"Authorization": token} if token else {})}
            reply.exchange(path, request, headers=headers, deadline=deadline)
            if reply.status != 200:
                body, _ = reply.body(limit=_MAX_ERROR_BYTES, deadline=deadline)
                raise _rejected(reply.status, body)
        except BaseException:
            reply.close()
            raise
        return reply

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise MetadataUnavailable(f"the store at {self._address} was closed")

    def _unavailable(self, path: str, failures: dict[Endpoint, str], outcome: str) -> MetadataUnavailable:
        said = "; ".join(f"{endpoint}: {message}" for endpoint, message in failures.items())
        return MetadataUnavailable(f"{path}: no answer from {self._address}{outcome} ({said})")


def _did_nothing(exc: Exception) -> bool:
    return isinstance(exc, NoConnection) or (isinstance(exc, Rejected) and exc.not_begun)


def _next(reply: Reply, *, deadline: Deadline) -> Json:
    return _document(reply.line(limit=_MAX_MESSAGE_BYTES, deadline=deadline))


def _document(body: bytes) -> Json:
    """The answer in a body, or in a message of a stream, which has it as its result."""
    document: Any = json.loads(body)
    if isinstance(document, dict):
        if "error" in document:
            raise Rejected.of(document)
        document = document.get("result", document)
        if isinstance(document, dict) and "header" in document:
            return document
    raise ValueError(f"no answer of etcd's gateway: {body[:60]!r}")


def _rejected(status: int, body: bytes) -> Exception:
    try:
        document = json.loads(body)
        if isinstance(document, dict) and "error" in document:
            return Rejected.of(document)
    except ValueError:
        pass
    return ValueError(f"no answer of etcd's gateway, but HTTP {status}: {body[:60]!r}")
