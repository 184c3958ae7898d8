"""Tensors out of an object that is a safetensors file, whoever wrote it: whole ones, slices, into memory that is there.

Large tensors are received where they are wanted, verified, many chunks at a time and without a copy. Small neighbours are read
together. On the host of a replica the bytes come from its files past the network, as for any read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from client.manifest import Ref
from client.names import parse_url
from client.objects import ObjectStore
from client.pages import Pages
from loader.errors import InvalidOption, LoaderError, TensorMismatch
from loader.store_user import StoreUser
from loader.tensors.contents import Contents, Shard, Stored
from loader.tensors.gathering import MAX_SCRATCH_BYTES, SMALL_BYTES, Wanted, gather
from loader.tensors.header import LENGTH_BYTES, TensorsHeader
from loader.tensors.memory import bytes_of, is_plain
from loader.tensors.region import Index, Region, parse_index

__all__ = ["Part", "Piece", "TensorReader", "load_tensors"]

Tensors = dict[str, torch.Tensor]

_HEAD_BYTES: Final = 64 * 1024  # Read at once from the beginning: for most files the whole header.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Elements of tensor `name`: those at `axes` of each dimension, and the tensor of that shape that they are read into.

    All elements, without `axes`. `memory` is that of `into`, where files can be mapped into it.
    """

    name: str
    into: torch.Tensor
    axes: tuple[range, ...] | None = None
    memory: Pages | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes ``[start, end)`` of the chunk with the id `chunk`."""

    chunk: bytes
    chunk_bytes: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole chunk."""
        return self.size == self.chunk_bytes


class TensorReader(StoreUser):
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
    contents : Contents
        What is in it.

    Raises
    ------
    ObjectNotFound
        If there is no such object.
    TensorsCorrupt, FormatUnsupported
        If it is no safetensors file, a truncated one, one whose header lies, or a newer one.
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
        super().__init__(client, endpoints)
        try:
            self.info = self._store.stat(bucket, key, version=version, snapshot=snapshot)
            self._content = self._store.reader(self.info)
            header = self._read_header()
            self.contents = Contents.of(header)
        except LoaderError as exc:
            self.close()
            raise type(exc)(f"{url}: {exc}") from exc
        except BaseException:
            self.close()
            raise
        self._data_offset = header.data_offset
        self._names = self.contents.names()

    @property
    def metadata(self) -> dict[str, str]:
        """What was given to keep with the tensors."""
        return dict(self.contents.metadata)

    def keys(self) -> list[str]:
        """Names of the tensors, in order."""
        return list(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self.contents.tensors or name in self.contents.ties

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.load([name])[name]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor; raises `TensorMismatch` if there is none of that name."""
        self._check_names([name])
        return self.contents.dtype(name)

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor; raises `TensorMismatch` if there is none of that name."""
        self._check_names([name])
        return torch.Size(self.contents.shape(name))

    def num_bytes(self, name: str) -> int:
        """Bytes that the elements of a tensor take."""
        self._check_names([name])
        return math.prod(self.contents.shape(name)) * self.contents.dtype(name).itemsize

    def load(
        self,
        names: Iterable[str] | None = None,
        *,
        into: Mapping[str, torch.Tensor] | None = None,
        device: str | torch.device = "cpu",
        mmap: bool = False,
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
        mmap : bool
            Map the chunks of large tensors that lie on this host into new tensors on the CPU, once they are verified, so that
            its processes share them. They can be written to, which changes no file. Later, a page that the kernel dropped and
            the disk has lost ends the process, as with ``torch.load(mmap=True)``.

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
        InvalidOption
            For `mmap` with `into` or another device.
        """
        if mmap and (into is not None or torch.device(device).type != "cpu"):
            raise InvalidOption("mmap makes new tensors on the CPU: it goes with neither `into` nor another device")
        wanted = list(names if names is not None else self._names if into is None else into)
        self._check_names(wanted)
        if into is not None:
            self._check_into(wanted, into)
        ties = {name: self.contents.ties[name] for name in wanted if name in self.contents.ties}
        whole = dict.fromkeys(ties[name].owner if name in ties else name for name in wanted)
        # Owners that were not asked for, and whatever has no memory of the caller's yet.
        asked = frozenset(wanted)
        pages: dict[str, Pages] = {}
        read: Tensors = {}
        for name in whole:
            stored = self.contents.tensors[name]
            if into is not None and name in asked:
                read[name] = into[name].detach()
            elif mmap and stored.num_bytes >= SMALL_BYTES:
                pages[name] = Pages(stored.num_bytes)
                read[name] = torch.frombuffer(pages[name], dtype=torch.uint8).view(stored.dtype).view(stored.shape)
            else:
                read[name] = torch.empty(stored.shape, dtype=stored.dtype, device=device)
        self.load_parts(Part(name=name, into=tensor, memory=pages.get(name)) for name, tensor in read.items())
        found = {name: ties[name].view(read[ties[name].owner]) if name in ties else read[name] for name in wanted}
        if into is None:
            return found
        with torch.no_grad():
            for name in ties:
                into[name].copy_(found[name])
        return {name: into[name] for name in wanted}

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
        axes, kept = parse_index(tuple(self.shape(name)), index)
        wanted = torch.Size(len(axis) for axis, keep in zip(axes, kept, strict=True) if keep)
        if into is not None and (into.shape, into.dtype) != (wanted, self.dtype(name)):
            raise TensorMismatch(f"{self.url}: {_differs(name, wanted, self.dtype(name), into)}")
        taken = torch.empty(wanted, dtype=self.dtype(name), device=device) if into is None else into
        if name in self.contents.ties:
            # Its elements lie in its owner's bytes, in any order.
            with torch.no_grad():
                taken.copy_(self[name][index])
        else:
            all_axes = tuple(slice(None) if keep else None for keep in kept)
            self.load_parts([Part(name=name, axes=axes, into=taken.detach()[all_axes])])
        return taken

    def load_parts(self, parts: Iterable[Part]) -> None:
        """Fill parts of tensors that are no ties, together. Errors of the store pass through; the parts are worthless then."""
        wanted: list[Wanted] = []
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        scratch_bytes = 0
        for part in parts:
            stored = self.contents.tensors[part.name]
            for shard in stored.shards:
                to, first, region = _taken(part, stored, shard)
                if not to.numel():
                    continue
                place, memory = to, part.memory
                if not is_plain(to):
                    memory = None
                    place = torch.empty(to.shape, dtype=to.dtype, pin_memory=to.is_cuda)
                    copies.append((to, place))
                    scratch_bytes += place.nbytes
                out = bytes_of(place) if memory is None else _bytes_within(memory, place, whole=part.into)
                wanted.append(Wanted(start=self._data_offset + shard.entry.start + first, out=out, region=region))
                if scratch_bytes >= MAX_SCRATCH_BYTES:
                    self._fill(wanted, copies)
                    wanted, copies, scratch_bytes = [], [], 0
        self._fill(wanted, copies)

    def refs(self) -> Iterator[Ref]:
        """Every chunk of the object, those of its manifests included."""
        return self._content.refs()

    def pieces(self, name: str) -> list[Piece] | None:
        """The pieces of chunks that a tensor lies in, in order, shard after shard; None of a tie."""
        if name in self.contents.ties:
            return None
        found: list[Piece] = []
        for shard in self.contents.tensors[name].shards:
            start = self._data_offset + shard.entry.start
            spans = self._content.spans(start, start + shard.entry.num_bytes)
            found += [Piece(chunk=span.ref.id, chunk_bytes=span.ref.size, start=span.start, end=span.end) for span in spans]
        return found

    def _fill(self, wanted: list[Wanted], copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        gather(wanted, read_parts=self._content.read_parts)
        for to, place in copies:
            to.copy_(place)

    def _read_header(self) -> TensorsHeader:
        size = self._content.size
        # No more than the first chunk has: whoever wrote it by `save_tensors` has the header there.
        first = next(self._content.spans(0, min(_HEAD_BYTES, size)), None)
        head = bytearray(min(size, max(LENGTH_BYTES, first.end if first else 0)))
        self._content.read_into(head)
        length = TensorsHeader.length(bytes(head[:LENGTH_BYTES]), file_bytes=size)
        missing = LENGTH_BYTES + length - len(head)
        if missing > 0:
            rest = bytearray(missing)
            self._content.read_into(rest, start=len(head))
            head += rest
        return TensorsHeader.decode(bytes(head[LENGTH_BYTES : LENGTH_BYTES + length]), file_bytes=size)

    def _check_names(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self]
        if missing:
            there = ", ".join(self._names[:20]) + (" ..." if len(self._names) > 20 else "")
            asked = ", ".join(map(repr, missing))
            raise TensorMismatch(f"{self.url} has no {asked}; it has {len(self._names)} tensors: {there}")

    def _check_into(self, names: Iterable[str], into: Mapping[str, torch.Tensor]) -> None:
        wrong = []
        for name in names:
            shape, dtype = self.contents.shape(name), self.contents.dtype(name)
            if name not in into:
                wrong.append(f"{name!r} is asked for and not in `into`")
            elif (tuple(into[name].shape), into[name].dtype) != (shape, dtype):
                wrong.append(_differs(name, shape, dtype, into[name]))
        if wrong:
            raise TensorMismatch(f"{self.url}: " + "; ".join(wrong))


def load_tensors(
    url: str,
    names: Iterable[str] | None = None,
    *,
    into: Mapping[str, torch.Tensor] | None = None,
    device: str | torch.device = "cpu",
    mmap: bool = False,
    version: int | None = None,
    snapshot: str | None = None,
    endpoints: str | list[str] | None = None,
    client: ObjectStore | None = None,
) -> Tensors:
    """Tensors of one object by name; see `TensorReader` and its `load`, which say what is raised."""
    with TensorReader(url, version=version, snapshot=snapshot, endpoints=endpoints, client=client) as reader:
        return reader.load(names, into=into, device=device, mmap=mmap)


def _taken(part: Part, stored: Stored, shard: Shard) -> tuple[torch.Tensor, int, Region | None]:
    """What of a part comes from a shard: the elements read into, where in it they begin, and their region if several runs."""
    if part.axes is None and len(stored.shards) == 1:
        return part.into, 0, None
    axes = map(range, stored.shape) if part.axes is None else part.axes
    inside = [_within(axis, *span) for axis, span in zip(axes, shard.spans, strict=True)]
    to = part.into[tuple(places for _, places in inside)]
    region = Region.of(shard.sizes, [axis for axis, _ in inside], item_bytes=stored.dtype.itemsize)
    return to, region.first if to.numel() else 0, region if len(region.starts) > 1 else None


def _within(axis: range, start: int, end: int) -> tuple[range, slice]:
    """What of `axis` lies in ``[start, end)``, counted from `start`, and which places of `axis` that is."""
    first = max(0, -(-(start - axis.start) // axis.step))
    last = max(first, min(len(axis), -(-(end - axis.start) // axis.step)))
    chosen = axis[first:last]
    return range(chosen.start - start, chosen.stop - start, axis.step), slice(first, last)


def _bytes_within(pages: Pages, part: torch.Tensor, *, whole: torch.Tensor) -> memoryview:
    start = part.data_ptr() - whole.data_ptr()
    return memoryview(pages)[start : start + part.nbytes]


def _differs(name: str, shape: Sequence[int], dtype: torch.dtype, found: torch.Tensor) -> str:
    return f"{name!r} is {dtype} of shape {list(shape)}, given was {found.dtype} of shape {list(found.shape)}"
