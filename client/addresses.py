"""Which of a node's addresses leads to it from here.

A node may have several: a name in the network of its containers, a port that their host publishes, one in each of two networks.
Which of them works depends on who asks, and one may lead elsewhere: to another node, or to a stranger who would be sent a
token and data. So with several, the first one is taken at which the node itself says that it is there. That is asked without
a token, and again after the node failed. A node with one address is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException

from client.errors import EndpointUnreachable, StoreError
from client.parallel import bounded_map
from client.wire import decode_json, parse_endpoint

__all__ = ["Addresses", "node_at"]

_MAX_PARALLEL = 16
_MAX_ANSWER_BYTES = 4096


class Addresses:
    """The address of each node that has several. Thread-safe.

    Parameters
    ----------
    ask : callable
        Who is at an address: the id of the node there, or why that is not known. By default `node_at`.
    timeout_s : float
        How long an address may take to answer.
    """

    def __init__(self, *, timeout_s: float, ask: Callable[..., str] | None = None) -> None:
        self._ask = ask or partial(node_at, timeout_s=timeout_s)
        # Assigned, read and taken out in one step each. Two threads that look for one node find the same.
        self._found: dict[str, str] = {}

    def of(self, node_id: str, urls: Sequence[str]) -> str:
        """The address, one of `urls`, at which `node_id` is; raises `EndpointUnreachable` if it is at none of them."""
        if len(urls) == 1:
            return urls[0]
        found = self._found.get(node_id)
        if found is not None and found in urls:
            return found
        said = {}
        for url in urls:
            said[url] = self._ask(url)
            if said[url] == node_id:
                self._found[node_id] = url
                return url
        tried = "; ".join(f"{url}: {words}" for url, words in said.items())
        raise EndpointUnreachable(f"node {node_id} is at none of its addresses ({tried})", node_id=node_id)

    def all_of(self, endpoints: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """The addresses of those nodes that are reached."""
        if all(len(urls) == 1 for urls in endpoints.values()):
            return tuple(url for urls in endpoints.values() for url in urls)

        def find(item: tuple[str, Sequence[str]]) -> str | None:
            try:
                return self.of(*item)
            except EndpointUnreachable:
                return None

        # Asked at once, because a network may swallow what is sent to an address that is not for us.
        return tuple(url for url in bounded_map(find, endpoints.items(), max_parallel=_MAX_PARALLEL) if url is not None)

    def forget(self, node_id: str) -> None:
        """Look for a node anew at its next use, because it did not answer."""
        self._found.pop(node_id, None)


def node_at(url: str, *, timeout_s: float) -> str:
    """The id of the node at an address, or in words why that is not known."""
    host, port = parse_endpoint(url)
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        body = connection.getresponse().read(_MAX_ANSWER_BYTES)
        return str(decode_json(body)["node_id"])
    except (OSError, UnicodeError, HTTPException) as exc:
        return f"{exc}"
    except (StoreError, KeyError, TypeError):
        return "something else is there"
    finally:
        connection.close()
