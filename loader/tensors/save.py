"""`save_tensors`: tensors as one object, which is a safetensors file, cut so that what did not change costs nothing.

The header is a chunk of its own; then come the data, cut by `loader.tensors.layout`. Chunks of memory that is on the CPU and in
order are sent from there, without a copy; of others a copy is made when their turn comes. The nodes are asked for each chunk
first, so that one that is there already is not sent. Nothing is visible before all is durable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from typing_extensions import Buffer

from client.names import parse_url
from client.objects import ObjectStore
from client.record import Ack, Condition, ObjectInfo
from loader.errors import InvalidOption
from loader.store_user import opened_store
from loader.tensors.contents import HIDDEN_PREFIX, METADATA_KEY
from loader.tensors.dtypes import is_stored_as_bytes, stored_type
from loader.tensors.header import TensorEntry, TensorsHeader
from loader.tensors.layout import Piece, chunks_of, lay_out
from loader.tensors.memory import bytes_of
from loader.tensors.sharing import Tie, tie

__all__ = ["CONTENT_TYPE", "save_tensors"]

CONTENT_TYPE: Final = "application/vnd.safetensors"


def save_tensors(
    url: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    if_match: str | None = None,
    if_none_match: str | None = None,
    ack: Ack | None = None,
    endpoints: str | list[str] | None = None,
    client: ObjectStore | None = None,
) -> ObjectInfo:
    """Store tensors as one object, and return once it is durable and named.

    The object is a valid safetensors file. Tensors of 1 MiB or more that are the same as in any object of the bucket's
    cluster are neither sent nor written again. Those that share memory are stored once, and share it again when loaded.

    Parameters
    ----------
    url : str
        ``forebay://bucket/key``.
    tensors : mapping of str to torch.Tensor
        Dense, of any shape, stride, device and dtype but the quantized ones. Nobody may change them meanwhile.
    metadata : mapping of str to str, optional
        Kept in the file.
    if_match, if_none_match, ack
        As for `client.Client.put`.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile.
    client : ObjectStore, optional
        Used instead of one made from `endpoints`.

    Returns
    -------
    ObjectInfo
        Of the new object.

    Raises
    ------
    InvalidOption
        For what is no dense tensor, or a name or metadata that the format can't hold; names all of them.
    PreconditionFailed, BucketNotFound, NotEnoughReplicas, DiskFull
        From the store; nothing is visible then.
    """
    bucket, key = parse_url(url)
    stored, header, entries = _prepare(tensors, metadata or {})
    with (
        opened_store(client, endpoints) as store,
        store.upload(bucket, key, ack=ack, content_type=CONTENT_TYPE) as upload,
    ):
        upload.write_owned(header)
        for payload in _payloads(stored, entries, chunk_size_bytes=store.config.chunk_size_bytes):
            upload.write_owned(payload)
        return upload.commit(condition=Condition(if_match=if_match, if_none_match=if_none_match))


def _prepare(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, torch.Tensor], bytes, list[TensorEntry]]:
    _check(tensors, metadata)
    stored, ties = tie({name: tensor.detach() for name, tensor in tensors.items()})
    as_bytes = {name: str(tensor.dtype) for name, tensor in stored.items() if is_stored_as_bytes(tensor)}
    entries = lay_out(_row(name, tensor) for name, tensor in stored.items())
    extra = {METADATA_KEY: _extra(ties, as_bytes)} if ties or as_bytes else {}
    return stored, TensorsHeader.encode(entries, metadata={**metadata, **extra}), entries


def _row(name: str, tensor: torch.Tensor) -> tuple[str, str, tuple[int, ...], int]:
    dtype, shape = stored_type(tensor)
    return name, dtype, shape, tensor.numel() * tensor.dtype.itemsize


def _extra(ties: Mapping[str, Tie], as_bytes: Mapping[str, str]) -> str:
    value = {"dtypes": dict(sorted(as_bytes.items())), "ties": {name: ties[name].to_json() for name in sorted(ties)}}
    return json.dumps(value, separators=(",", ":"))


def _payloads(tensors: Mapping[str, torch.Tensor], entries: list[TensorEntry], *, chunk_size_bytes: int) -> Iterator[Buffer]:
    copied: tuple[str, memoryview] = "", memoryview(b"")
    for pieces in chunks_of(entries, chunk_size_bytes=chunk_size_bytes):
        packed: list[memoryview] = []
        for piece in pieces:
            # A tensor that has to be copied is so once, for all of its chunks, which follow each other.
            if copied[0] != piece.name:
                copied = piece.name, bytes_of(tensors[piece.name])
            packed.append(_cut(copied[1], piece))
        yield packed[0] if len(packed) == 1 else b"".join(packed)


def _cut(data: memoryview, piece: Piece) -> memoryview:
    return data[piece.start : piece.end]


def _check(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    wrong = []
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name or name == "__metadata__" or name.startswith(HIDDEN_PREFIX):
            wrong.append(f"{name!r} can't be a name")
        elif not isinstance(tensor, torch.Tensor):
            wrong.append(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        elif type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            wrong.append(f"{name!r} is a {type(tensor).__name__}: of a distributed tensor, loader.checkpoint stores the shards")
        elif tensor.layout != torch.strided or tensor.device.type == "meta":
            wrong.append(f"{name!r} is {tensor.layout} on {tensor.device}, and not dense with values")
        elif tensor.is_quantized:
            wrong.append(f"{name!r} is quantized, with scales beside its values: store int_repr() and the scales")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key == METADATA_KEY:
            wrong.append(f"metadata {key!r}: texts to texts, and the key {METADATA_KEY!r} is taken")
    if wrong:
        raise InvalidOption("can't be stored as tensors: " + "; ".join(wrong))
