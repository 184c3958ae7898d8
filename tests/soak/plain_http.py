"""A client that is not ours: plain HTTP to one node after another, as a script with curl would do it.

It repeats a PUT whose answer did not come, under the same write id, at other nodes; the outcome is that of the write, however
often it was sent.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from urllib.parse import urlsplit

from client.errors import EndpointUnreachable, ObjectNotFound, PreconditionFailed, StoreError, from_problem
from client.record import Condition
from client.wire import META_PREFIX, WRITE_ID_HEADER, object_path
from client.write_id import new_write_id
from tests.soak.clients import BUCKET, TAG, choose_condition, hot_key
from tests.soak.history import NOTHING_NAMED, History, Seen, now
from tests.soak.values import SHARED, WrongBytes, read, shared, size_of, value

__all__ = ["HttpContender"]

TIMEOUT_S = 8.0
MAX_ATTEMPTS = 3


class HttpContender:
    """One such client. Call `step` again and again.

    Parameters
    ----------
    tokens : callable
        The token to send now.
    pinned : callable
        The only node to read from now, if there is one; writes go to the others then.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tokens: Callable[[], str],
        pinned: Callable[[], str | None],
        history: History,
        *,
        name: str,
        rng: random.Random,
        chunk_bytes: int,
    ) -> None:
        self._endpoints = endpoints
        self._tokens = tokens
        self._pinned = pinned
        self._history = history
        self._name = name
        self._rng = rng
        self._chunk_bytes = chunk_bytes
        self._num_writes = 0
        self._seen: dict[str, Seen] = {}

    def step(self) -> None:
        """One operation."""
        key, kind = hot_key(self._rng), self._rng.random()
        if (pinned := self._pinned()) is not None:
            self._hand_over(key, pinned)
        elif kind < 0.25:
            self._put(key, self._endpoints)
        elif kind < 0.5:
            self._hand_over(key, self._rng.choice(self._endpoints))
        elif kind < 0.6:
            self._delete(key)
        else:
            self._get(key, self._rng.choice(self._endpoints))

    def _hand_over(self, key: str, reader: str) -> None:
        """What was written through others is read through this node at once, whatever it has heard of it by then."""
        if (written := self._put(key, [other for other in self._endpoints if other != reader])) is not None:
            read = self._get(key, reader)
            if read is not None and read.version < written.version:
                self._history.violation(
                    f"{self._name} wrote {key} version {written.version} and then read version {read.version} at level strong"
                )

    def _put(self, key: str, endpoints: Sequence[str]) -> Seen | None:
        self._num_writes += 1
        tag = f"{self._name}-{self._num_writes}"
        data = shared(self._rng) if self._rng.random() < 0.2 else value(tag, size_of(self._rng, chunk_bytes=self._chunk_bytes))
        condition, asked = choose_condition(self._rng, self._seen.get(key), new=True)
        headers = {META_PREFIX + TAG: tag, **_conditions(condition)}
        called = now()
        try:
            body = self._repeated("PUT", endpoints, key, headers, data)
        except (StoreError, OSError) as error:
            self._history.not_written(self._name, "put", key, called, tag, asked, error)
            return None
        info = json.loads(body)
        seen = Seen(tag=tag, etag=info["record"]["write_id"], version=info["version"])
        self._seen[key] = seen
        self._history.wrote(self._name, "put", key, called, seen, asked)
        return seen

    def _delete(self, key: str) -> None:
        condition, asked = choose_condition(self._rng, self._seen.get(key), new=False)
        called = now()
        try:
            self._repeated("DELETE", self._endpoints, key, _conditions(condition))
        except (StoreError, OSError) as error:
            self._history.not_written(self._name, "delete", key, called, None, asked, error)
        else:
            self._history.wrote(self._name, "delete", key, called, None, asked)

    def _get(self, key: str, endpoint: str) -> Seen | None:
        called = now()
        try:
            headers, body = self._request("GET", endpoint, key, {})
        except ObjectNotFound:
            self._history.read(self._name, key, called, None, what="http get")
            return None
        except (StoreError, OSError) as error:
            self._history.failed("http get", error)
            return None
        seen = Seen(tag=headers[META_PREFIX + TAG], etag=headers["etag"].strip('"'), version=int(headers["x-forebay-version"]))
        self._history.read(self._name, key, called, seen, what="http get")
        self._seen[key] = seen
        try:
            name = read(body)
        except WrongBytes as error:
            self._history.violation(f"{self._name} got {key}: {error}")
            return None
        if name not in (None, seen.tag) and not str(name).startswith(SHARED):
            self._history.violation(f"{self._name} got {key} with the head of {seen.tag} and the bytes of {name}")
        return seen

    def _repeated(
        self, method: str, endpoints: Sequence[str], key: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> bytes:
        """One write, sent until there is an answer that says what became of it; raises what the last one said."""
        sent = {**headers, WRITE_ID_HEADER: new_write_id()}
        last: StoreError | None = None
        for endpoint in self._rng.sample(endpoints, MAX_ATTEMPTS):
            try:
                return self._request(method, endpoint, key, sent, body)[1]
            except (PreconditionFailed, ObjectNotFound):
                raise  # Also of an earlier attempt without an answer: had that won, this one would have been told so.
            except StoreError as error:
                # An attempt that named nothing says nothing of an earlier one that may have.
                last = error if last is None or isinstance(last, NOTHING_NAMED) else last
                if not error.retryable:
                    break
        assert last is not None
        raise last

    def _request(
        self, method: str, endpoint: str, key: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[Mapping[str, str], bytes]:
        place = urlsplit(endpoint)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=TIMEOUT_S)
        with closing(connection):
            try:
                connection.request(
                    method,
                    object_path(BUCKET, key),
                    body=body,
                    headers={**headers, "authorization": f"Bearer {self._tokens()}"},
                )
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as exc:
                raise EndpointUnreachable(f"{method} {key} at {endpoint}: {type(exc).__name__} {exc}") from exc
        if answer.status >= 400:
            raise from_problem(json.loads(data), node_id=endpoint)
        return {name.lower(): text for name, text in answer.getheaders()}, data


def _conditions(condition: Condition) -> dict[str, str]:
    asked = {"if-match": condition.if_match, "if-none-match": condition.if_none_match}
    return {name: tag if tag == "*" else f'"{tag}"' for name, tag in asked.items() if tag is not None}
