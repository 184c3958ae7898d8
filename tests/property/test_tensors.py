"""Tensors as files: headers that are hostile, slices as bytes, memory that is shared, whatever the shapes."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loader.errors import InvalidOption, TensorsCorrupt
from loader.tensors.gathering import GAP_BYTES, Wanted, gather
from loader.tensors.header import DTYPE_BITS, LENGTH_BYTES, TensorsHeader
from loader.tensors.layout import OWN_CHUNK_BYTES, chunks_of, lay_out
from loader.tensors.region import Region, parse_index
from loader.tensors.sharing import tie

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from(sorted(name for name, bits in DTYPE_BITS.items() if bits >= 8))


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[str, str, tuple[int, ...], int]]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=8))
    found = []
    for name in names:
        dtype, shape = draw(DTYPES), draw(SHAPES)
        found.append((name, dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8))
    return [row for row in found if row[0] != "__metadata__"]


def decode(data: bytes) -> TensorsHeader:
    length = TensorsHeader.length(data[:LENGTH_BYTES], file_bytes=len(data))
    return TensorsHeader.decode(data[LENGTH_BYTES : LENGTH_BYTES + length], file_bytes=len(data))


@given(rows(), st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3))
def test_what_was_encoded_is_decoded_and_aligned(tensors: list[Any], metadata: dict[str, str]) -> None:
    entries = lay_out(tensors)
    head = TensorsHeader.encode(entries, metadata=metadata)
    data_bytes = sum(entry.num_bytes for entry in entries)
    header = decode(head + bytes(data_bytes))
    assert {entry.name: entry for entry in header.entries} == {entry.name: entry for entry in entries}
    assert header.metadata == metadata
    assert header.data_offset == len(head) and len(head) % 64 == 0
    for entry in header.entries:
        assert (header.data_offset + entry.start) % (DTYPE_BITS[entry.dtype] // 8) == 0


@given(rows(), st.data())
def test_a_damaged_header_is_an_error_or_covers_the_file_exactly(tensors: list[Any], data: st.DataObject) -> None:
    entries = lay_out(tensors)
    file = bytearray(TensorsHeader.encode(entries, metadata={}) + bytes(sum(entry.num_bytes for entry in entries)))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(file[: data.draw(st.integers(0, len(file)))])
    try:
        header = decode(damaged)
    except TensorsCorrupt:
        return
    end = header.data_offset
    for entry in header.entries:
        assert entry.start + header.data_offset == end
        assert math.prod(entry.shape) * DTYPE_BITS[entry.dtype] == 8 * entry.num_bytes
        end += entry.num_bytes
    assert end == len(damaged)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
        },
        {"a": {"dtype": "X", "shape": [16], "data_offsets": [0, 16]}},
        {"a": {"dtype": "U8", "shape": [True] * 4, "data_offsets": [0, 16]}},
        {"a": {"dtype": "F4", "shape": [33], "data_offsets": [0, 16]}},
        {"__metadata__": {"x": 1}, "a": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}},
        [],
    ],
)
def test_a_header_that_lies_is_an_error(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(TensorsCorrupt):
        decode(struct.pack("<Q", len(text)) + text + bytes(16))


def test_a_header_that_no_reader_would_take_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.tensors.header.MAX_HEADER_BYTES", 1000)
    entries = lay_out((f"t{number}", "U8", (1,), 1) for number in range(20))
    TensorsHeader.encode(entries[:10], metadata={})
    with pytest.raises(InvalidOption, match=r"20 tensors .* use several objects"):
        TensorsHeader.encode(entries, metadata={})


@given(st.lists(st.tuples(DTYPES, st.integers(0, 3 * OWN_CHUNK_BYTES)), max_size=12), st.integers(1, 64))
def test_chunks_cover_the_data_in_order_and_follow_large_tensors(sizes: list[tuple[str, int]], units: int) -> None:
    chunk_size_bytes = units * 64 * 1024
    entries = lay_out((f"t{number}", dtype, (size,), size) for number, (dtype, size) in enumerate(sizes))
    by_name = {entry.name: entry for entry in entries}
    at = 0
    for pieces in chunks_of(entries, chunk_size_bytes=chunk_size_bytes):
        assert sum(piece.end - piece.start for piece in pieces) <= chunk_size_bytes
        if any(by_name[piece.name].num_bytes >= OWN_CHUNK_BYTES for piece in pieces):
            assert len(pieces) == 1 and pieces[0].start % chunk_size_bytes == 0
        for piece in pieces:
            assert by_name[piece.name].start + piece.start == at and piece.end > piece.start
            at += piece.end - piece.start
    assert at == sum(size for _, size in sizes)


@st.composite
def shapes_and_indexes(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))

    def parts(sizes: tuple[int, ...]) -> list[Any]:
        bounds = [[draw(st.integers(-size - 1, size + 1)) for _ in range(2)] for size in sizes]
        step = draw(st.integers(1, 3))
        kinds = [
            st.sampled_from([slice(None), slice(low, high), slice(low, high, step), low % size])
            for size, (low, high) in zip(sizes, bounds, strict=True)
        ]
        return [draw(kind) for kind in kinds]

    first = draw(st.integers(0, len(shape)))
    if not draw(st.booleans()):
        return shape, tuple(parts(shape[:first]))
    last = draw(st.integers(first, len(shape)))
    return shape, (*parts(shape[:first]), Ellipsis, *parts(shape[last:]))


@given(shapes_and_indexes(), st.integers(0, 40), st.integers(1, 100))
def test_a_region_is_what_numpy_selects(chosen: tuple[tuple[int, ...], Any], gap_bytes: int, most_bytes: int) -> None:
    shape, index = chosen
    array = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    data, wanted = array.tobytes(), array[index]
    axes, kept = parse_index(shape, index)
    assert tuple(len(axis) for axis, keep in zip(axes, kept, strict=True) if keep) == wanted.shape
    region = Region.of(shape, axes, item_bytes=4)
    out = bytearray(region.num_bytes)
    for extent in region.extents(gap_bytes=gap_bytes, most_bytes=most_bytes):
        read = data[extent.start : extent.end]
        assert len(read) <= max(most_bytes, region.run_bytes)
        for number, run in enumerate(extent.runs.tolist(), start=extent.first):
            out[number * region.run_bytes : (number + 1) * region.run_bytes] = read[run : run + region.run_bytes]
    assert bytes(out) == wanted.tobytes()


@given(st.lists(st.tuples(shapes_and_indexes(), st.integers(0, 3 * GAP_BYTES)), max_size=6))
def test_many_regions_are_gathered_from_one_file(chosen: list[tuple[tuple[tuple[int, ...], Any], int]]) -> None:
    file = np.random.default_rng(0).integers(0, 256, 6**4 * 4 + 3 * GAP_BYTES, np.uint8)
    wanted, outs = [], []
    for (shape, index), base in chosen:
        axes, _ = parse_index(shape, index)
        region = Region.of(shape, axes, item_bytes=4)
        outs.append(bytearray(region.run_bytes * len(region.starts)))
        start = base + (region.first if region.num_bytes else 0)
        wanted.append(Wanted(start=start, out=memoryview(outs[-1]), region=region if len(region.starts) > 1 else None))

    def read_parts(parts: Any) -> None:
        for buffer, start in parts:
            buffer[:] = file[start : start + len(buffer)].data

    gather(wanted, read_parts=read_parts)
    for ((shape, index), base), out in zip(chosen, outs, strict=True):
        array = file[base : base + 4 * math.prod(shape)].view(np.uint32).reshape(shape)
        assert bytes(out) == array[index].tobytes()


@pytest.mark.parametrize("index", [5, -6, (0, 0, 0), slice(None, None, -1), True, [0, 1], (Ellipsis, Ellipsis), None])
def test_what_is_no_plain_index_is_an_error(index: Any) -> None:
    with pytest.raises(IndexError):
        parse_index((5, 2), index)


@given(st.lists(shapes_and_indexes(), min_size=1, max_size=5), st.data())
def test_ties_give_back_every_tensor_and_what_it_shares(chosen: list[tuple[tuple[int, ...], Any]], data: st.DataObject) -> None:
    base = torch.arange(6**4 + 64, dtype=torch.int32)
    tensors: dict[str, torch.Tensor] = {}
    for number, (shape, index) in enumerate(chosen):
        start = data.draw(st.integers(0, 64))
        tensors[f"t{number}"] = base[start : start + math.prod(shape)].reshape(shape)[index]
    stored, ties = tie(tensors)
    copied = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in stored.items()}
    loaded = {name: ties[name].view(copied[ties[name].owner]) if name in ties else copied[name] for name in tensors}
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
    # What is written through one is seen through all that share the element, and no others.
    for number, name in enumerate(tensors):
        tensors[name].fill_(-number)
        loaded[name].fill_(-number)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
