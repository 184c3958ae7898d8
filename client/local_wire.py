"""How the contract looks on a node's Unix socket, where chunks are passed as file descriptors.

Both sides import this module. The socket is of the kind SEQPACKET: a request is one message, an answer and its descriptors are
one message, and the kernel keeps them whole. So neither side ever waits for the rest of one.

    request   version, how many chunks, which segment checks are wanted; partition and id of each chunk (`ChunkRequest`);
              behind them the token
    answer    one line of JSON: node and cluster, which chunks are not passed, perhaps a check and a problem document; behind
              it 8 bytes for each segment check; beside it, read-only, the descriptors of the other chunks' files, in order

Each answer says who gives it: a path that another node took over, or that means another node on this host, is found out.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from client.checksum import Announced
from client.errors import InvalidRequest, ProtocolMismatch
from client.wire import encode_json

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_REQUEST_BYTES",
    "MAX_TOGETHER",
    "SOCKET_NAME",
    "ChunkAnswer",
    "ChunkRequest",
    "socket_address",
]

SOCKET_NAME = "chunks.sock"
LOCAL_PROTOCOL = 2
MAX_HEAD_BYTES = 16 * 1024
MAX_TOGETHER = 32  # Chunks of one request, whose descriptors are open at once.
_NOTHING = Announced()
_FIELDS = struct.Struct("<HHII")
_CHUNK = struct.Struct("<I32s")
MAX_REQUEST_BYTES = _FIELDS.size + MAX_TOGETHER * _CHUNK.size + 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Asks a node for chunk files, or for nothing but who it is.

    Attributes
    ----------
    chunks : sequence of (int, bytes)
        Partition and id of each, at most `MAX_TOGETHER`.
    first, last : int
        The segments whose checks the answer shall have, `last` excluded. None for who reads whole chunks; of one chunk only.
    token : str
        The client's, empty without one.
    """

    chunks: Sequence[tuple[int, bytes]]
    first: int = 0
    last: int = 0
    token: str

    def encode(self) -> bytes:
        """The message."""
        fields = _FIELDS.pack(LOCAL_PROTOCOL, len(self.chunks), self.first, self.last)
        return b"".join((fields, *(_CHUNK.pack(*chunk) for chunk in self.chunks), self.token.encode()))

    @classmethod
    def decode(cls, message: bytes) -> ChunkRequest:
        """The inverse of `encode`; raises `ProtocolMismatch` or `InvalidRequest`."""
        version = int.from_bytes(message[:2], "little")
        if version != LOCAL_PROTOCOL:
            raise ProtocolMismatch(f"this node passes chunks by version {LOCAL_PROTOCOL}, and was asked by version {version}")
        try:
            _, count, first, last = _FIELDS.unpack_from(message)
            end = _FIELDS.size + count * _CHUNK.size
            chunks = list(_CHUNK.iter_unpack(message[_FIELDS.size : end]))
            token = message[end:].decode()
        except (struct.error, UnicodeDecodeError) as exc:
            raise InvalidRequest(f"{len(message)} bytes are no request for chunks: {exc}") from exc
        if len(chunks) != count or count > MAX_TOGETHER or (last and count != 1):
            raise InvalidRequest(f"{count} chunks, segments {first} to {last}: at most {MAX_TOGETHER}, segments of one only")
        return cls(chunks=chunks, first=first, last=last, token=token)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnswer:
    """What a node says beside the descriptors.

    Attributes
    ----------
    node_id, cluster_id : str
        Who answers.
    missing : tuple of int
        Which of the chunks that were asked for are not passed.
    announced : Announced
        Where segments are asked for, their checks and the chunk's.
    problem : mapping or None
        Why the first one of `missing` is not passed, or why none is (RFC 9457).
    """

    node_id: str
    cluster_id: str
    missing: tuple[int, ...] = ()
    announced: Announced = _NOTHING
    problem: Mapping[str, Any] | None = None

    def encode(self) -> bytes:
        """The message."""
        head = {
            "node_id": self.node_id,
            "cluster_id": self.cluster_id,
            "missing": self.missing,
            "check": self.announced.check,
            "problem": self.problem,
        }
        return encode_json(head) + b"\n" + self.announced.segment_checks

    @classmethod
    def decode(cls, message: bytes) -> ChunkAnswer:
        """The inverse of `encode`; raises `ProtocolMismatch`."""
        head, _, segment_checks = message.partition(b"\n")
        try:
            value = json.loads(head.decode())
            return cls(
                node_id=str(value["node_id"]),
                cluster_id=str(value["cluster_id"]),
                missing=tuple(map(int, value.get("missing", ()))),  # Version 1, which knows no such list, says what is wrong.
                announced=Announced(check=value["check"], segment_checks=segment_checks),
                problem=None if value["problem"] is None else dict(value["problem"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ProtocolMismatch(f"no node answers like this: {message[:100]!r}") from exc

    def assign(self, fds: Sequence[int], *, count: int) -> list[int | None]:
        """The descriptors of `count` chunks that were asked for, None for those missing; raises `ProtocolMismatch`."""
        if self.problem is not None and not fds:
            return [None] * count
        numbers = sorted({*range(count)} - {*self.missing})
        if len(numbers) + len(self.missing) != count or len(fds) != len(numbers) or (self.missing and self.problem is None):
            raise ProtocolMismatch(f"{len(fds)} descriptors came for {count} chunks, without {self.missing}")
        found: list[int | None] = [None] * count
        for number, fd in zip(numbers, fds, strict=True):
            found[number] = fd
        return found


@contextmanager
def socket_address(path: str) -> Iterator[str]:
    """The address of the socket at `path`, good within the block. Raises `OSError` if its directory can't be opened."""
    # An address holds 107 bytes, and data directories may lie deeper than that.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)
