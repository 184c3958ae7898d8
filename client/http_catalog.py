"""The catalog as a client sees it: HTTP calls to whichever node answers, repeated until one does.

Every node can answer for all names. A call goes to the configured endpoints and to the nodes found through them, those
that failed lately last, and repeats on the next one until its deadline. Writes may be repeated because the record (or the
delete) carries a write id: a commit whose reply was lost returns its first result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import quote, urlencode

from client.addresses import Addresses
from client.catalog import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, Commit, Consistency, Listing, Opened, Watched
from client.checksum import xxh3
from client.cluster import ClusterView
from client.config import ClientConfig
from client.errors import EndpointUnreachable, MetadataCorrupt, StoreError, from_problem
from client.names import check_bucket, check_key, check_prefix
from client.opening import Opening
from client.record import BucketPolicy, Condition, ObjectInfo
from client.retry import Backoff, Deadline, retrying
from client.session import Session
from client.snapshots import Snapshot, check_snapshot
from client.transport import Response, Transport
from client.wire import VERSION_HEADER, WRITE_ID_HEADER, decode_json, encode_json, object_path, record_path

__all__ = ["HttpCatalog"]


class HttpCatalog:
    """Implements `client.catalog.Catalog` over HTTP. Thread-safe.

    Parameters
    ----------
    origin : str
        In words, where the endpoints came from; for error messages.
    addresses : Addresses
        Finds out which addresses of the nodes in the view lead to them.
    """

    def __init__(self, transport: Transport, config: ClientConfig, *, origin: str, addresses: Addresses) -> None:
        self._transport = transport
        self._config = config
        self._origin = origin
        self._addresses = addresses
        self._configured = config.endpoints
        self._discovered: tuple[str, ...] = ()
        self._urls = self._configured
        self._failed_s: dict[str, float] = {}
        self._ever_answered = False
        self._session = Session()
        self._backoff = Backoff(base_s=config.retry_base_s, max_s=config.retry_max_s)

    def cluster_view(self) -> ClusterView:
        """The cluster as some node sees it. After the first time one round is enough: whoever asks has an older view."""
        view = ClusterView.from_json(self._json("GET", "/v1/cluster", again=not self._discovered, is_quick=True))
        self._discovered = self._addresses.all_of(view.endpoints)
        self._urls = tuple(dict.fromkeys(self._configured + self._discovered))
        return view

    def create_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """See `Catalog.create_bucket`."""
        self._call("PUT", f"/v1/buckets/{check_bucket(bucket)}", headers={"if-none-match": "*"}, json=policy.to_json())

    def bucket(self, bucket: str) -> BucketPolicy:
        """See `Catalog.bucket`."""
        return BucketPolicy.from_json(self._json("GET", f"/v1/buckets/{check_bucket(bucket)}", is_quick=True))

    def buckets(self) -> dict[str, BucketPolicy]:
        """See `Catalog.buckets`."""
        return {name: BucketPolicy.from_json(value) for name, value in self._json("GET", "/v1/buckets").items()}

    def set_bucket(self, bucket: str, policy: BucketPolicy) -> None:
        """See `Catalog.set_bucket`."""
        self._call("PUT", f"/v1/buckets/{check_bucket(bucket)}", headers={"if-match": "*"}, json=policy.to_json())

    def delete_bucket(self, bucket: str) -> None:
        """See `Catalog.delete_bucket`."""
        self._call("DELETE", f"/v1/buckets/{check_bucket(bucket)}")

    def lookup(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> ObjectInfo:
        """See `Catalog.lookup`."""
        asked = {} if consistency == "strong" else {"consistency": consistency}
        seen = self._session.seen if consistency == "session" else None
        path = record_path(check_bucket(bucket), check_key(key)) + _query(
            version=version, snapshot=snapshot, **asked, seen=seen
        )
        return self._seen(ObjectInfo.from_json(self._json("GET", path, is_quick=True)))

    def begin_read(
        self,
        bucket: str,
        key: str,
        *,
        start: int,
        end: int | None,
        most: int | None,
        version: int | None,
        consistency: Consistency,
        place: Callable[[ObjectInfo], memoryview],
    ) -> Opened:
        """See `Catalog.begin_read`."""
        query = f"?start={start}"
        for name, number in (("end", end), ("most", most), ("version", version)):
            if number is not None:
                query += f"&{name}={number}"
        if consistency != "strong":
            query += f"&consistency={quote(consistency)}"
        if consistency == "session":
            query += f"&seen={self._session.seen}"
        opening = Opening(start=start, place=place)
        path = record_path(check_bucket(bucket), check_key(key))
        # By name: that spreads the bytes over the nodes, and each keeps in memory what it is asked for.
        response = self._call("GET", path + query, into=opening, seen=opening.seen, spread_by=path, is_quick=True)
        if response.body:
            opening.take_record(response.body)
        opened = opening.opened()
        self._session.saw(opened.info.version)
        return opened

    def lookup_many(self, names: Sequence[tuple[str, str]]) -> list[ObjectInfo | StoreError]:
        """See `Catalog.lookup_many`."""
        items = [encode_json({"bucket": bucket, "key": key}) for bucket, key in names]
        return self._batch("/v1/records:batchGet", items)

    def commit(self, write: Commit) -> ObjectInfo:
        """See `Catalog.commit`."""
        path = record_path(check_bucket(write.bucket), check_key(write.key))
        value = {"record": write.record.to_json(), **write.proof_json()}
        response = self._call("PUT", path, headers=_conditions(write.condition), json=value)
        return self._seen(ObjectInfo.from_json(decode_json(response.body)))

    def commit_many(self, writes: Sequence[Commit]) -> list[ObjectInfo | StoreError]:
        """See `Catalog.commit_many`."""
        return self._batch("/v1/records:batchPut", [encode_json(write.to_json()) for write in writes])

    def delete(self, bucket: str, key: str, *, write_id: str, condition: Condition) -> int:
        """See `Catalog.delete`."""
        headers = {**_conditions(condition), WRITE_ID_HEADER: write_id}
        response = self._call("DELETE", object_path(check_bucket(bucket), check_key(key)), headers=headers)
        version = int(response.headers.get(VERSION_HEADER, 0))  # A node of an earlier release tells none.
        self._session.saw(version)
        return version

    def _batch(self, path: str, items: Sequence[bytes]) -> list[ObjectInfo | StoreError]:
        """The outcome of each item, from as many requests as it takes, one after the other: order counts for some."""
        outcomes: list[ObjectInfo | StoreError] = []
        while len(outcomes) < len(items):
            start = len(outcomes)
            outcomes += self._part(path, items[start : start + _num_fitting(items[start:])])
        return outcomes

    def _part(self, path: str, items: Sequence[bytes]) -> list[ObjectInfo | StoreError]:
        """The outcomes of one request; items whose error may pass are sent again until the deadline."""
        outcomes: dict[int, ObjectInfo | StoreError] = {}
        left, attempt, deadline = list(range(len(items))), 0, Deadline(self._config.deadline_s)
        while True:
            body = b"[" + b",".join(items[index] for index in left) + b"]"
            answers = decode_json(self._call("POST", path, body=body, deadline=deadline).body)
            if not isinstance(answers, list) or len(answers) != len(left):
                raise MetadataCorrupt(f"{path}: {len(left)} items were asked, and the answer is {answers!r:.100}")
            outcomes.update(zip(left, map(_outcome, answers), strict=True))
            for outcome in outcomes.values():
                self._session.saw((outcome.version if isinstance(outcome, ObjectInfo) else outcome.revision) or 0)
            failed = {index: error for index in left if isinstance(error := outcomes[index], StoreError) and error.retryable}
            if not failed or not self._backoff.wait(attempt, error=failed[min(failed)], deadline=deadline):
                return [outcomes[index] for index in range(len(items))]
            left, attempt = list(failed), attempt + 1

    def create_snapshot(self, bucket: str, name: str, *, snapshot_id: str) -> Snapshot:
        """See `Catalog.create_snapshot`."""
        path, headers = f"/v1/snapshots/{check_bucket(bucket)}/{check_snapshot(name)}", {WRITE_ID_HEADER: snapshot_id}
        return Snapshot.from_json(self._json("PUT", path, headers=headers))

    def snapshots(self, bucket: str) -> tuple[Snapshot, ...]:
        """See `Catalog.snapshots`."""
        return tuple(map(Snapshot.from_json, self._json("GET", f"/v1/snapshots/{check_bucket(bucket)}")["snapshots"]))

    def delete_snapshot(self, bucket: str, name: str) -> None:
        """See `Catalog.delete_snapshot`."""
        self._call("DELETE", f"/v1/snapshots/{check_bucket(bucket)}/{check_snapshot(name)}")

    def prune(self, bucket: str, *, after: str | None) -> tuple[int, str | None]:
        """See `Catalog.prune`."""
        value = self._json("POST", f"/v1/prune/{check_bucket(bucket)}{_query(after=after)}")
        return int(value["pruned"]), value["after"]

    def list(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        cursor: str | None,
        limit: int,
        versions: bool,
        snapshot: str | None = None,
    ) -> Listing:
        """See `Catalog.list`."""
        query = _query(
            prefix=check_prefix(prefix) or None,
            delimiter=delimiter or None,
            cursor=cursor,
            limit=limit,
            versions="true" if versions else None,
            snapshot=snapshot,
        )
        listing = Listing.from_json(self._json("GET", f"/v1/objects/{check_bucket(bucket)}{query}"))
        self._session.saw(listing.revision)
        return listing

    def watch(self, bucket: str, *, prefix: str, after: int | None, timeout_s: float) -> Watched:
        """See `Catalog.watch`."""
        query = _query(prefix=check_prefix(prefix) or None, after=after, timeout_s=timeout_s)
        path = f"/v1/watch/{check_bucket(bucket)}{query}"
        watched = Watched.from_json(self._json("GET", path, timeout_s=timeout_s + self._config.read_timeout_s))
        self._session.saw(watched.revision)
        return watched

    def admin(self, method: str, path: str, *, json: Any = None) -> Any:
        """An administrative call; its decoded answer."""
        return decode_json(self._call(method, path, json=json).body)

    def _seen(self, info: ObjectInfo) -> ObjectInfo:
        self._session.saw(info.version)
        return info

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return decode_json(self._call(method, path, **options).body)

    def _call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: bytes | None = None,
        timeout_s: float | None = None,
        deadline: Deadline | None = None,
        again: bool = True,
        is_quick: bool = False,
        spread_by: str = "",
        **receiving: Any,
    ) -> Response:
        """Ask until some node answers.

        `json` is the body, or `body` if it is encoded already. `timeout_s` is for a call that waits on purpose, `deadline` for
        one that is a part of another; `again` False makes one round. Whoever does not give an answer that `is_quick` soon is
        not waited for as long as for others, while somebody else has not been asked. Each value of `spread_by` has a node that
        is asked first, instead of the first that is configured. `receiving` says how the answer is received, as for
        `Transport.request`.
        """
        body = encode_json(json) if json is not None else body
        sent = {**(headers or {}), **({"content-type": "application/json"} if body is not None else {})}
        deadline = deadline or Deadline(self._config.deadline_s + (timeout_s or 0.0))
        options = {"headers": sent, "body": body, "deadline": deadline, **receiving}
        said: dict[str, StoreError] = {}

        def request(url: str) -> Response:
            # Once all have been asked, it is the cluster that is slow, and not one node.
            in_a_hurry = is_quick and len(said) + 1 < len(self._urls)
            patience_s = self._config.connect_timeout_s if in_a_hurry else timeout_s
            return self._transport.request(method, url, path, timeout_s=patience_s, **options)

        return retrying(
            lambda: self._any_endpoint(request, spread_by=spread_by, deadline=deadline, said=said),
            backoff=self._backoff,
            deadline=deadline,
            # Whoever never reached a node has most likely the wrong address: that is said at once, not after a minute.
            again=lambda error: again and error.retryable and self._ever_answered,
        )

    def _any_endpoint(
        self, request: Callable[[str], Response], *, spread_by: str, deadline: Deadline, said: dict[str, StoreError]
    ) -> Response:
        """One round over the endpoints. An answer that another node would give as well ends the round.

        `said` has the last word of each endpoint, across rounds: the deadline may leave no time for all in the last one.
        """
        urls = self._urls
        if spread_by:
            first = xxh3(spread_by.encode()) % len(urls)
            urls = urls[first:] + urls[:first]
        for place, url in enumerate(sorted(urls, key=lambda url: self._failed_s.get(url, 0.0))):
            if place and not deadline.remaining_s():
                break
            try:
                response = request(url)
            except StoreError as error:
                self._ever_answered |= not isinstance(error, EndpointUnreachable)
                if not error.retryable:
                    self._session.saw(error.revision or 0)
                    raise
                self._failed_s[url] = time.monotonic()
                said[url] = error
                continue
            self._failed_s.pop(url, None)
            self._ever_answered = True
            return response
        # What a node said is worth more than that others are silent.
        for answer in said.values():
            if not isinstance(answer, EndpointUnreachable):
                # The next round is worth it once the first of them may be asked again.
                answer.retry_after_s = min(error.retry_after_s or 0.0 for error in said.values())
                raise answer
        raise EndpointUnreachable(
            f"no node answers at {', '.join(urls)} (from {self._origin}). Is the cluster up? "
            "`forebay up` starts one on this machine; FOREBAY_ENDPOINT names another"
        ) from next(iter(said.values()))


def _num_fitting(items: Sequence[bytes]) -> int:
    """How many of the first items one request takes; at least one, which the node may then refuse."""
    ends = accumulate(len(item) + 1 for item in items[:MAX_BATCH_ITEMS])
    return max(1, sum(1 + end <= MAX_BATCH_BYTES for end in ends))


def _outcome(answer: Mapping[str, Any]) -> ObjectInfo | StoreError:
    """What a node answers for one item of many."""
    if "info" in answer:
        return ObjectInfo.from_json(answer["info"])
    return from_problem(answer["problem"], node_id="")


def _conditions(condition: Condition) -> dict[str, str]:
    headers = {"if-match": condition.if_match, "if-none-match": condition.if_none_match}
    return {name: value if value == "*" else f'"{value}"' for name, value in headers.items() if value is not None}


def _query(**values: object) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given, quote_via=quote)}" if given else ""
