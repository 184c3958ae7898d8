"""The client as applications use it: `Client` finds the cluster from its endpoints and speaks HTTP to it."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from client.addresses import Addresses
from client.batch import BatchReader
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.colocated import Colocated
from client.config import load_config
from client.http_catalog import HttpCatalog
from client.objects import ObjectStore
from client.transport import Transport
from client.wire import decode_json, encode_json

__all__ = ["Client"]


class Client(ObjectStore):
    """A connection to a Forebay cluster. Thread-safe; usable as a context manager; cheap until first used.

    It belongs to the process that opened it: after a fork the child opens its own, and this one raises `Misconfigured` there.

    Parameters
    ----------
    endpoints : str or list of str, optional
        Addresses of one or more nodes, ``http://host:port``. Without it: ``FOREBAY_ENDPOINT``, then the profile, then
        ``http://127.0.0.1:7070``.
    token : str, optional
        Sent as a bearer token. Without it: ``FOREBAY_TOKEN``, then the profile.
    profile : str, optional
        A section of the config file; without it: ``FOREBAY_PROFILE``.

    Raises
    ------
    Misconfigured
        If a setting is wrong. Nothing is contacted before the first call.
    """

    def __init__(self, endpoints: str | list[str] | None = None, token: str | None = None, profile: str | None = None) -> None:
        config, origin = load_config(endpoints=endpoints, token=token, profile=profile)
        self._transport = Transport(config)
        addresses = Addresses(timeout_s=config.connect_timeout_s)
        catalog = HttpCatalog(self._transport, config, origin=origin, addresses=addresses)
        cluster = Cluster(catalog.cluster_view, ttl_s=config.view_ttl_s, suspect_s=config.suspect_s, addresses=addresses)
        self._colocated = Colocated(cluster, config)
        super().__init__(catalog, cluster, ChunkClient(cluster, self._transport, self._colocated), config)
        self._http = catalog
        self._batches = BatchReader(self, self._call_pool)

    def get_many(self, items: Iterable[tuple[str, str, int, int | None]]) -> list[bytes]:
        """See `ObjectStore.get_many`. Small objects come by the hundreds in one answer."""
        return self._batches.get_many(items)

    def admin(self, method: str, path: str, *, json: Any = None, node_id: str | None = None) -> Any:
        """An administrative call, such as ``GET /v1/admin/jobs``; its decoded answer.

        Parameters
        ----------
        json : object, optional
            Sent as the body.
        node_id : str, optional
            Which node to call, once; by default any that answers, repeated like every call for names.
        """
        if node_id is None:
            return self._http.admin(method, path, json=json)
        body = None if json is None else encode_json(json)
        headers = {} if body is None else {"content-type": "application/json"}
        url = self.cluster.endpoint(node_id)
        return decode_json(self._transport.request(method, url, path, headers=headers, body=body, node_id=node_id).body)

    def close(self) -> None:
        """Stop the threads and close the connections."""
        super().close()
        self._colocated.close()
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
