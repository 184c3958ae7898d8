"""How the contract looks on a node's Unix socket, where a chunk is passed as a file descriptor.

Both sides import this module. The socket is of the kind SEQPACKET: a request is one message, an answer and its descriptor are
one message, and the kernel keeps them whole. So neither side ever waits for the rest of one.

    request   version, partition, id, which segment checks are wanted (`ChunkRequest`); behind them the token
    answer    one line of JSON: node and cluster, and the chunk's check or a problem document; behind it 8 bytes for
              each segment check; beside it, unless there is a problem, the chunk file's descriptor, read-only

Each answer says who gives it: a path that another node took over, or that means another node on this host, is found out.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from client.checksum import Announced
from client.errors import InvalidRequest, ProtocolMismatch
from client.wire import encode_json

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_REQUEST_BYTES",
    "SOCKET_NAME",
    "ChunkAnswer",
    "ChunkRequest",
    "is_in_memory",
    "socket_address",
]

SOCKET_NAME = "chunks.sock"
LOCAL_PROTOCOL = 1
MAX_HEAD_BYTES = 16 * 1024
_FIELDS = struct.Struct("<HI32sII")
MAX_REQUEST_BYTES = _FIELDS.size + 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRequest:
    """Asks a node for a chunk file.

    Attributes
    ----------
    first, last : int
        The segments whose checks the answer shall have, `last` excluded. None for who reads the whole chunk.
    token : str
        The client's, empty without one.
    """

    partition: int
    id: bytes
    first: int
    last: int
    token: str

    def encode(self) -> bytes:
        """The message."""
        return _FIELDS.pack(LOCAL_PROTOCOL, self.partition, self.id, self.first, self.last) + self.token.encode()

    @classmethod
    def decode(cls, message: bytes) -> ChunkRequest:
        """The inverse of `encode`; raises `ProtocolMismatch` or `InvalidRequest`."""
        version = int.from_bytes(message[:2], "little")
        if version != LOCAL_PROTOCOL:
            raise ProtocolMismatch(f"this node passes chunks by version {LOCAL_PROTOCOL}, and was asked by version {version}")
        try:
            _, partition, chunk_id, first, last = _FIELDS.unpack_from(message)
            token = message[_FIELDS.size :].decode()
        except (struct.error, UnicodeDecodeError) as exc:
            raise InvalidRequest(f"{len(message)} bytes are no request for a chunk: {exc}") from exc
        return cls(partition=partition, id=chunk_id, first=first, last=last, token=token)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAnswer:
    """What a node says beside the descriptor, or instead of it.

    Attributes
    ----------
    node_id, cluster_id : str
        Who answers.
    announced : Announced
        The check of the chunk, and those of the segments that were asked for.
    problem : mapping or None
        Why there is no descriptor (RFC 9457).
    """

    node_id: str
    cluster_id: str
    announced: Announced
    problem: Mapping[str, Any] | None

    def encode(self) -> bytes:
        """The message."""
        head = {"node_id": self.node_id, "cluster_id": self.cluster_id, "check": self.announced.check, "problem": self.problem}
        return encode_json(head) + b"\n" + self.announced.segment_checks

    @classmethod
    def decode(cls, message: bytes) -> ChunkAnswer:
        """The inverse of `encode`; raises `ProtocolMismatch`."""
        head, _, segment_checks = message.partition(b"\n")
        try:
            value = json.loads(head)
            announced = Announced(check=value["check"], segment_checks=segment_checks)
            problem = None if value["problem"] is None else dict(value["problem"])
            return cls(node_id=str(value["node_id"]), cluster_id=str(value["cluster_id"]), announced=announced, problem=problem)
        except (ValueError, KeyError, TypeError) as exc:
            raise ProtocolMismatch(f"no node answers like this: {message[:100]!r}") from exc


@contextmanager
def socket_address(path: str) -> Iterator[str]:
    """The address of the socket at `path`, good within the block. Raises `OSError` if its directory can't be opened."""
    # An address holds 107 bytes, and data directories may lie deeper than that.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def is_in_memory(fd: int, size: int) -> bool:
    """Whether the kernel seems to have a file: its first byte, and one amid. Advice for 8 MiB costs 125 us, this 4."""
    byte = bytearray(1)
    try:
        return all(os.preadv(fd, [byte], offset, os.RWF_NOWAIT) for offset in (0, size // 2))
    except OSError:  # It has not, or it can't tell.
        return False
