"""The header of a safetensors file: which tensor lies where. The object that `save_tensors` writes is such a file.

Theory of operation
-------------------
A file is u64 (little-endian) size of the header, the header as JSON, then the data without holes. The header maps each
tensor's name to its dtype, shape and the bytes ``[start, end)`` of the data that it takes; ``__metadata__`` maps texts to
texts. Source: the format's description at https://github.com/huggingface/safetensors, "Format".

Invariant: what `TensorsHeader.decode` lets through covers the data exactly, each byte by one tensor, and every tensor has the
bytes that its shape and dtype ask for. So nothing that a hostile header says can make a reader leave the file or allocate more
than it is long. This module knows no torch and does no I/O.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from loader.errors import InvalidOption, TensorsCorrupt

__all__ = ["DTYPE_BITS", "LENGTH_BYTES", "MAX_HEADER_BYTES", "TensorEntry", "TensorsHeader"]

DTYPE_BITS: Final[Mapping[str, int]] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Every dtype of the format, with the bits of one element."""
LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
_ALIGN_BYTES: Final = 64
_MAX_DIMENSIONS: Final = 64
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_INTS: Final = frozenset({int})  # And no bool, which is one, too.
_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class TensorEntry(NamedTuple):
    """One tensor of a file.

    Attributes
    ----------
    name : str
        Unique in the file.
    dtype : str
        As the format names it, ``F32``.
    shape : tuple of int
        Of the tensor; () of a scalar.
    start, end : int
        Its bytes, counted from the beginning of the data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorsHeader:
    """What a file holds.

    Attributes
    ----------
    entries : tuple of TensorEntry
        In the order of the data.
    metadata : mapping of str to str
        Whatever the writer wanted to say.
    data_offset : int
        Where the data begin in the file.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_offset: int

    @classmethod
    def encode(cls, entries: Sequence[TensorEntry], *, metadata: Mapping[str, str]) -> bytes:
        """The file up to its data, which begin at a multiple of 64 bytes. Raises `InvalidOption` for more than fits."""
        value: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        for entry in entries:
            value[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.start, entry.end],
            }
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGN_BYTES)
        if len(text) > MAX_HEADER_BYTES:
            raise InvalidOption(
                f"{len(entries)} tensors and what is said of them take a header of {len(text)} bytes; the format allows "
                f"{MAX_HEADER_BYTES}: use several objects"
            )
        return struct.pack("<Q", len(text)) + text

    @classmethod
    def length(cls, head: bytes, *, file_bytes: int) -> int:
        """Bytes of the header, of which `head` is the beginning of the file (all of a shorter one, else at least 8 bytes).

        Raises
        ------
        TensorsCorrupt
            If it can't be the beginning of such a file; says so if it looks like one of pickles.
        """
        if head[:4] == _PICKLES[0] or head[:2] in _PICKLES[1:]:
            raise TensorsCorrupt(
                "this is a file of pickles, as torch.save writes, and not safetensors; pickles are never executed here: where "
                "you trust it, load it with torch.load and store what it holds with save_tensors"
            )
        if len(head) < LENGTH_BYTES:
            raise TensorsCorrupt(f"a safetensors file has at least {LENGTH_BYTES} bytes, found {file_bytes}")
        size = int.from_bytes(head[:LENGTH_BYTES], "little")
        if not 2 <= size <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
            raise TensorsCorrupt(
                f"the file begins with {head[:LENGTH_BYTES].hex()}, a header of {size} bytes; a safetensors file of "
                f"{file_bytes} bytes has one of 2 to {min(MAX_HEADER_BYTES, max(2, file_bytes - LENGTH_BYTES))}"
            )
        return size

    @classmethod
    def decode(cls, text: bytes, *, file_bytes: int) -> TensorsHeader:
        """The header in `text`, without the length before it; raises `TensorsCorrupt`."""
        try:
            value = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as exc:
            raise TensorsCorrupt(f"the header is no JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise TensorsCorrupt(f"the header is a JSON object, found {str(value)[:100]}")
        metadata = value.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise TensorsCorrupt(f"__metadata__ maps texts to texts, found {str(metadata)[:200]}")
        entries = sorted(map(_entry, value.items()), key=lambda entry: (entry.start, entry.end))
        data_offset, end = LENGTH_BYTES + len(text), 0
        for entry in entries:
            if entry.start != end:
                raise TensorsCorrupt(f"tensor {entry.name!r} begins at byte {entry.start} of the data, expected {end}: no hole")
            end = entry.end
        if data_offset + end != file_bytes:
            raise TensorsCorrupt(
                f"the header of {data_offset} bytes speaks of {end} bytes of data, so the file has {data_offset + end}; "
                f"found {file_bytes}"
            )
        return cls(entries=tuple(entries), metadata=metadata, data_offset=data_offset)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _entry(item: tuple[str, Any]) -> TensorEntry:
    name, value = item
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise TensorsCorrupt(f"tensor {name!r} has the fields {', '.join(sorted(_FIELDS))}, found {str(value)[:200]}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise TensorsCorrupt(f"tensor {name!r} has a dtype of {', '.join(DTYPE_BITS)}, found {str(dtype)[:80]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise TensorsCorrupt(
            f"the shape of tensor {name!r} is a list of up to {_MAX_DIMENSIONS} sizes, found {str(shape)[:200]}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise TensorsCorrupt(f"the data_offsets of tensor {name!r} are [start, end], found {str(offsets)[:200]}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise TensorsCorrupt(
            f"tensor {name!r}, {dtype} of shape {shape}, takes {bits} bits; data_offsets say {offsets[1] - offsets[0]} bytes"
        )
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])


def _are_sizes(value: object) -> bool:
    if not isinstance(value, list) or not _INTS.issuperset(map(type, value)):
        return False
    return min(value, default=0) >= 0 and max(value, default=0) < 1 << 63
