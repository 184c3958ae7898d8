"""Tensors out of an object that is a safetensors file, whoever wrote it: whole ones, slices, into memory that is there.

Large tensors are received where they are wanted, verified, many chunks at a time and without a copy. Small neighbours are read
together. On the host of a replica the bytes come from its files past the network, as for any read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

import numpy as np
import torch

from client import Client
from client.names import parse_url
from client.objects import ObjectStore
from loader.errors import FormatUnsupported, TensorMismatch, TensorsCorrupt
from loader.tensors.dtypes import dtype_of, torch_dtype
from loader.tensors.header import LENGTH_BYTES, TensorEntry, TensorsHeader
from loader.tensors.region import Extent, Index, Region, select
from loader.tensors.save import METADATA_KEY
from loader.tensors.sharing import SHARED_PREFIX, Tie

__all__ = ["TensorReader", "load_tensors"]

Tensors = dict[str, torch.Tensor]

_HEAD_BYTES: Final = 64 * 1024  # Read at once from the beginning: for most files the whole header.
_SMALL_BYTES: Final = 1 << 20  # Smaller tensors are read together with their neighbours.
_GAP_BYTES: Final = 64 * 1024  # Bytes between two that are wanted which cost less than a request.
_SCRATCH_BYTES: Final = 8 << 20
_MAX_SCRATCH_BYTES: Final = 64 << 20


class TensorReader:
    """One version of an object of tensors, opened. Thread-safe; usable as a context manager.

    Parameters
    ----------
    url : str
        ``forebay://bucket/key``.
    version, snapshot
        As for `client.Client.stat`.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile.
    client : ObjectStore, optional
        Used instead of one made from `endpoints`.

    Attributes
    ----------
    info : ObjectInfo
        Of the object.
    metadata : dict of str to str
        Of the file.

    Raises
    ------
    ObjectNotFound
        If there is no such object.
    TensorsCorrupt
        If it is no safetensors file, a truncated one, or one whose header lies.
    """

    def __init__(
        self,
        url: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        endpoints: str | list[str] | None = None,
        client: ObjectStore | None = None,
    ) -> None:
        self.url = url
        bucket, key = parse_url(url)
        self._owned = Client(endpoints) if client is None else None
        store = client or self._owned
        assert store is not None
        try:
            self.info = store.stat(bucket, key, version=version, snapshot=snapshot)
            self._content = store.reader(self.info)
            header = self._read_header()
            self.metadata = dict(header.metadata)
            extra = _extra(self.metadata.pop(METADATA_KEY, None))
            self._entries = {entry.name: entry for entry in header.entries}
            self._dtypes = {name: self._checked_dtype(name, dtype) for name, dtype in extra["dtypes"].items()}
            sizes = {entry.name: entry.num_bytes for entry in header.entries}
            self._ties = {name: Tie.from_json(name, value, owner_bytes=sizes) for name, value in extra["ties"].items()}
        except TensorsCorrupt as exc:
            self.close()
            raise type(exc)(f"{url}: {exc}") from exc
        except BaseException:
            self.close()
            raise
        self._data_offset = header.data_offset
        shown = [name for name in self._entries if not name.startswith(SHARED_PREFIX)]
        self._names = sorted([*shown, *self._ties])

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, if they are this reader's own."""
        if self._owned is not None:
            self._owned.close()

    def keys(self) -> list[str]:
        """Names of the tensors, in order."""
        return list(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._ties

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor; raises `TensorMismatch` if there is none of that name."""
        tie = self._ties.get(name)
        if tie is not None:
            return torch_dtype(tie.dtype)
        self._check_names([name])
        return self._dtypes.get(name) or dtype_of(self._entries[name])

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor; raises `TensorMismatch` if there is none of that name."""
        tie = self._ties.get(name)
        if tie is not None:
            return torch.Size(tie.shape)
        self._check_names([name])
        shape = self._entries[name].shape
        return torch.Size(shape[:-1] if name in self._dtypes else shape)

    def num_bytes(self, name: str) -> int:
        """Bytes that the elements of a tensor take."""
        return self.shape(name).numel() * self.dtype(name).itemsize

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.load([name])[name]

    def load(
        self,
        names: Iterable[str] | None = None,
        *,
        into: Mapping[str, torch.Tensor] | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensors:
        """Tensors, whole.

        Parameters
        ----------
        names : iterable of str, optional
            Which; all by default, or those of `into`.
        into : mapping of str to torch.Tensor, optional
            Filled in place: of the same shapes and dtypes, on any device. Contiguous ones on the CPU are received into.
        device : str or torch.device
            Where to, without `into`.

        Returns
        -------
        dict of str to torch.Tensor
            `into`'s tensors, or new ones. Tensors that shared memory when they were saved do so again.

        Raises
        ------
        TensorMismatch
            For names that are not there, and shapes or dtypes of `into` that differ; names all of them.
        AllReplicasFailed
            If bytes can't be had. `into` is half filled then.
        """
        wanted = list(self._names if names is None and into is None else names if names is not None else into or ())
        self._check_names(wanted)
        if into is not None:
            self._check_into(wanted, into)
        whole = list(dict.fromkeys(self._ties[name].owner if name in self._ties else name for name in wanted))
        places = {} if into is None else {name: into[name] for name in whole if name in into and _is_plain(into[name])}
        loaded = {name: places[name].detach() if name in places else self._empty(name) for name in whole}
        self._read_whole(loaded)
        result: Tensors = {}
        moved = {} if into is not None else {name: tensor.to(device) for name, tensor in loaded.items()}
        for name in wanted:
            tie = self._ties.get(name)
            if into is None:
                result[name] = moved[name] if tie is None else tie.view(moved[tie.owner])
            else:
                result[name] = into[name]
                if name not in places:
                    with torch.no_grad():
                        into[name].copy_(loaded[name] if tie is None else tie.view(loaded[tie.owner]))
        return result

    def load_slice(
        self, name: str, index: Index, *, into: torch.Tensor | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """``tensor[index]``, of which only the bytes are read that it takes, and those between close ones.

        Parameters
        ----------
        index : int, slice, ``...`` or a tuple of them
            With steps of 1 or more.
        into : torch.Tensor, optional
            Filled in place: of the slice's shape and the tensor's dtype.

        Raises
        ------
        TensorMismatch
            If there is no such tensor, or `into` does not fit.
        IndexError
            If there is no such slice.
        """
        shape, dtype = self.shape(name), self.dtype(name)
        if name in self._ties:
            # Its elements need not lie in the order of its dimensions.
            region, whole = select(tuple(shape), index, item_bytes=dtype.itemsize), self[name]
            taken = whole[index].contiguous()
            assert tuple(taken.shape) == region.shape
        else:
            region = select(tuple(shape), index, item_bytes=dtype.itemsize)
            taken = into.detach() if into is not None and _is_plain(into) else torch.empty(region.shape, dtype=dtype)
        if into is not None and (tuple(into.shape), into.dtype) != (region.shape, dtype):
            raise TensorMismatch(f"{self.url}: {_differs(name, (region.shape, dtype), into)}")
        if name not in self._ties:
            self._read_region(self._entries[name], region, _bytes_of(taken))
        if into is None:
            return taken.to(device)
        if taken.data_ptr() != into.data_ptr():
            with torch.no_grad():
                into.copy_(taken)
        return into

    def _read_header(self) -> TensorsHeader:
        size = self._content.size
        head = bytearray(min(_HEAD_BYTES, size))
        self._content.read_into(head)
        length = TensorsHeader.length(bytes(head[:LENGTH_BYTES]), file_bytes=size)
        missing = LENGTH_BYTES + length - len(head)
        if missing > 0:
            rest = bytearray(missing)
            self._content.read_into(rest, start=len(head))
            head += rest
        return TensorsHeader.decode(bytes(head[LENGTH_BYTES : LENGTH_BYTES + length]), file_bytes=size)

    def _checked_dtype(self, name: str, dtype: object) -> torch.dtype:
        """The dtype of a tensor that is stored as bytes."""
        entry, found = self._entries.get(name), torch_dtype(str(dtype))
        if entry is None or entry.dtype != "U8" or entry.shape[-1:] != (found.itemsize,):
            raise TensorsCorrupt(f"{name!r} should be the bytes of a tensor of {found}, found {entry}")
        return found

    def _empty(self, name: str) -> torch.Tensor:
        if name.startswith(SHARED_PREFIX):
            return torch.empty(self._entries[name].shape, dtype=torch.uint8)
        return torch.empty(self.shape(name), dtype=self.dtype(name))

    def _read_whole(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill plain tensors: large ones where they are, neighbouring small ones through a buffer."""
        parts: list[tuple[memoryview, int]] = []
        small: list[tuple[TensorEntry, memoryview]] = []
        for entry in sorted((self._entries[name] for name in tensors), key=lambda entry: entry.start):
            view = _bytes_of(tensors[entry.name])
            if entry.num_bytes >= _SMALL_BYTES:
                parts.append((view, self._data_offset + entry.start))
            elif entry.num_bytes:
                small.append((entry, view))
        groups = [(bytearray(group[-1][0].end - group[0][0].start), group) for group in _neighbours(small)]
        for scratch, group in groups:
            parts.append((memoryview(scratch), self._data_offset + group[0][0].start))
        self._content.read_parts(parts)
        for scratch, group in groups:
            first = group[0][0].start
            for entry, view in group:
                view[:] = memoryview(scratch)[entry.start - first : entry.end - first]

    def _read_region(self, entry: TensorEntry, region: Region, out: memoryview) -> None:
        base, run = self._data_offset + entry.start, region.run_bytes
        waiting: list[tuple[Extent, bytearray]] = []
        parts: list[tuple[memoryview, int]] = []
        for extent in region.extents(gap_bytes=_GAP_BYTES, most_bytes=_SCRATCH_BYTES):
            wanted = out[extent.first * run : (extent.first + len(extent.runs)) * run]
            if extent.end - extent.start == len(wanted):
                parts.append((wanted, base + extent.start))
                continue
            scratch = bytearray(extent.end - extent.start)
            parts.append((memoryview(scratch), base + extent.start))
            waiting.append((extent, scratch))
            if len(waiting) * _SCRATCH_BYTES >= _MAX_SCRATCH_BYTES:
                self._content.read_parts(parts)
                _spread(waiting, out, run)
                parts, waiting = [], []
        self._content.read_parts(parts)
        _spread(waiting, out, run)

    def _check_names(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self]
        if missing:
            raise TensorMismatch(
                f"{self.url} has no {', '.join(map(repr, missing))}; it has {len(self._names)} tensors: {_some(self._names)}"
            )

    def _check_into(self, names: Iterable[str], into: Mapping[str, torch.Tensor]) -> None:
        wrong = []
        for name in names:
            if name not in into:
                wrong.append(f"{name!r} is asked for and not in `into`")
            elif (into[name].shape, into[name].dtype) != (self.shape(name), self.dtype(name)):
                wrong.append(_differs(name, (tuple(self.shape(name)), self.dtype(name)), into[name]))
        if wrong:
            raise TensorMismatch(f"{self.url}: " + "; ".join(wrong))


def load_tensors(
    url: str,
    names: Iterable[str] | None = None,
    *,
    into: Mapping[str, torch.Tensor] | None = None,
    device: str | torch.device = "cpu",
    version: int | None = None,
    snapshot: str | None = None,
    endpoints: str | list[str] | None = None,
    client: ObjectStore | None = None,
) -> Tensors:
    """Tensors of one object by name; see `TensorReader` and its `load`, which say what is raised."""
    with TensorReader(url, version=version, snapshot=snapshot, endpoints=endpoints, client=client) as reader:
        return reader.load(names, into=into, device=device)


def _extra(text: str | None) -> dict[str, dict[str, Any]]:
    if text is None:
        return {"dtypes": {}, "ties": {}}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise TensorsCorrupt(f"the metadata {METADATA_KEY!r} are no JSON: {exc}") from exc
    if not isinstance(value, dict) or not all(isinstance(part, dict) for part in value.values()):
        raise TensorsCorrupt(f"the metadata {METADATA_KEY!r} are an object of objects, found {text[:200]}")
    if value.keys() != {"dtypes", "ties"}:
        raise FormatUnsupported(
            f"the metadata {METADATA_KEY!r} speak of {', '.join(sorted(value))}: a newer Forebay wrote them"
        )
    return value


def _neighbours(small: list[tuple[TensorEntry, memoryview]]) -> Iterator[list[tuple[TensorEntry, memoryview]]]:
    """Groups of small tensors, in order, that are worth reading together."""
    group: list[tuple[TensorEntry, memoryview]] = []
    for entry, view in small:
        if group and (entry.start - group[-1][0].end > _GAP_BYTES or entry.end - group[0][0].start > _SCRATCH_BYTES):
            yield group
            group = []
        group.append((entry, view))
    if group:
        yield group


def _spread(waiting: list[tuple[Extent, bytearray]], out: memoryview, run_bytes: int) -> None:
    for extent, scratch in waiting:
        result = np.frombuffer(out, np.uint8).reshape(-1, run_bytes)[extent.first : extent.first + len(extent.runs)]
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(scratch, np.uint8), run_bytes)
        result[:] = windows[extent.runs]


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: np.ndarray[Any, Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return array.data


def _differs(name: str, expected: tuple[tuple[int, ...], torch.dtype], found: torch.Tensor) -> str:
    return f"{name!r} is {expected[1]} of shape {list(expected[0])}, given was {found.dtype} of shape {list(found.shape)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
