"""The peers that speak HTTP, through `http.client`: one kept-alive connection a client, bodies read by `readinto`."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Filer", "Nginx", "Volumes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """Files below `root`, served from `url`; objects are put by writing them there."""

    url: str
    root: Path

    def connect(self, stack: ExitStack) -> _NginxConnection:
        return _NginxConnection(_Wire(stack, self.url), self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filer:
    """SeaweedFS's filer: files by name."""

    url: str

    def connect(self, stack: ExitStack) -> _FilerConnection:
        return _FilerConnection(_Wire(stack, self.url))


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """SeaweedFS's volume servers: objects by the ids that the master gives out.

    Attributes
    ----------
    places : dict
        URL and path of each key that was put from this process. It goes along to the client processes.
    """

    master: str
    places: dict[str, tuple[str, str]] = field(default_factory=dict)

    def connect(self, stack: ExitStack) -> _VolumesConnection:
        return _VolumesConnection(stack, self.master, self.places)


class _Wire:
    """A kept-alive connection, opened anew where the server has closed it while it was idle."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        stack.callback(self._connection.close)

    def get_into(self, path: str, buffer: memoryview) -> None:
        response, received = self._ask("GET", path), 0
        while received < len(buffer):
            count = response.readinto(buffer[received:])
            if count == 0:
                raise ConnectionError(f"{path} ended after {received} of {len(buffer)} bytes")
            received += count
        response.read()  # Nothing is left; this tells the connection so.

    def get(self, path: str) -> bytes:
        return self._ask("GET", path).read()

    def put(self, path: str, body: bytearray) -> None:
        self._ask("PUT", path, body=body).read()

    def _ask(self, method: str, path: str, *, body: bytearray | None = None) -> http.client.HTTPResponse:
        try:
            self._connection.request(method, path, body=body)
            response = self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()
            self._connection.request(method, path, body=body)
            response = self._connection.getresponse()
        if response.status not in (200, 201):
            raise ConnectionError(f"{method} {path}: status {response.status}: {response.read(200)!r}")
        return response


class _NginxConnection:
    def __init__(self, wire: _Wire, root: Path) -> None:
        self._wire, self._root = wire, root

    def get_into(self, key: str, buffer: memoryview) -> None:
        self._wire.get_into(f"/{key}", buffer)

    def put(self, key: str, body: bytearray) -> None:
        (self._root / key).write_bytes(body)


class _FilerConnection:
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def get_into(self, key: str, buffer: memoryview) -> None:
        self._wire.get_into(f"/bench/{key}", buffer)

    def put(self, key: str, body: bytearray) -> None:
        self._wire.put(f"/bench/{key}?fsync=true", body)


class _VolumesConnection:
    def __init__(self, stack: ExitStack, master: str, places: dict[str, tuple[str, str]]) -> None:
        self._stack, self._master, self._places = stack, _Wire(stack, master), places
        self._servers: dict[str, _Wire] = {}

    def get_into(self, key: str, buffer: memoryview) -> None:
        url, path = self._places[key]
        self._server(url).get_into(path, buffer)

    def put(self, key: str, body: bytearray) -> None:
        assigned = json.loads(self._master.get("/dir/assign?replication=002"))
        url, path = f"http://{assigned['url']}", f"/{assigned['fid']}"
        self._server(url).put(f"{path}?fsync=true", body)
        self._places[key] = (url, path)

    def _server(self, url: str) -> _Wire:
        if url not in self._servers:
            self._servers[url] = _Wire(self._stack, url)
        return self._servers[url]
