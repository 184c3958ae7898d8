"""Values of a checkpoint come back as they were, through JSON, and files of many ranks hold each element once."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.cluster import Anchor
from client.manifest import make_ref
from loader.checkpoint.index import Pack, RankReport, StoredShard, compose, pack_bytes
from loader.checkpoint.values import decode_value, encode_value
from loader.errors import InvalidOption, TensorsCorrupt
from loader.tensors.contents import METADATA_KEY, Contents
from loader.tensors.header import LENGTH_BYTES, TensorEntry, TensorsHeader

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)) | st.just("$")


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    return lists | lists.map(tuple) | st.dictionaries(KEYS, inner, max_size=4)


@given(st.recursive(LEAVES, nested, max_leaves=12))
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    found = decode_value(json.loads(json.dumps(encode_value(value, name="v"))))
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, [1j], {"a": range(3)}])
def test_what_would_have_to_be_pickled_is_refused(value: Any) -> None:
    with pytest.raises(InvalidOption, match="'v' holds a builtins"):
        encode_value(value, name="v")


@pytest.mark.parametrize(
    "value", [{"$": 1}, {"$": ["set", []]}, {"$": ["bytes", "%"]}, {"$": ["dict", [[1]]]}, {"$": ["dict", [[[], 1]]]}]
)
def test_what_nobody_wrote_is_an_error(value: Any) -> None:
    with pytest.raises(TensorsCorrupt):
        decode_value(value)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[tuple[int, ...], list[list[int]]]]:
    """Shapes by name, and how each dimension is cut."""
    found = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)):
        shape = draw(st.lists(st.integers(1, 6), max_size=3).map(tuple))
        cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
        found[name] = shape, cuts
    return found


@given(tensors(), st.integers(1, 4), st.data())
def test_a_file_of_many_ranks_has_every_shard_where_it_says(
    chosen: dict[str, tuple[tuple[int, ...], list[list[int]]]], num_ranks: int, data: st.DataObject
) -> None:
    shards = [shard for name, (shape, cuts) in chosen.items() for shard in shards_of(name, shape, cuts)]
    small: list[list[StoredShard]] = [[] for _ in range(num_ranks)]
    large: list[list[StoredShard]] = [[] for _ in range(num_ranks)]
    for shard in shards:
        kind = data.draw(st.sampled_from([small, large]))
        kind[data.draw(st.integers(0, num_ranks - 1))].append(shard)
    reports = [
        RankReport(
            small=(packed(of_rank),) if of_rank else (),
            large=tuple(map(alone, of_large)),
            values={},
            anchor=Anchor(layout=1, epoch=1),
        )
        for of_rank, of_large in zip(small, large, strict=True)
    ]
    composed = compose(reports, paths={}, metadata={})
    data_bytes = sum(ref.size for ref in composed.refs)
    header = TensorsHeader.decode(composed.header[LENGTH_BYTES:], file_bytes=len(composed.header) + data_bytes)
    contents = Contents.of(header)
    assert set(contents.names()) == set(chosen)
    for name, (shape, _) in chosen.items():
        assert contents.shape(name) == shape
        for part in contents.tensors[name].shards:
            assert (header.data_offset + part.entry.start) % 4 == 0


@pytest.mark.parametrize(("shape", "second"), [([2, 4], [0, 0]), ([2, 4], [0, 1]), ([4, 2], [1, 0])])
def test_shards_that_overlap_leave_a_hole_and_are_refused(shape: list[int], second: list[int]) -> None:
    """Two shards of 2 x 2 have as many elements as the tensor."""
    entries = [TensorEntry(name=f"s{n}", dtype="F32", shape=(2, 2), start=16 * n, end=16 * n + 16) for n in (0, 1)]
    offsets = [[0, 0], second]
    shards = [[f"s{number}", at, [2, 2]] for number, at in enumerate(offsets)]
    extra = {"checkpoint": {"format": 1, "tensors": {"t": {"dtype": "torch.float32", "shape": shape, "shards": shards}}}}
    header = TensorsHeader(entries=tuple(entries), metadata={METADATA_KEY: json.dumps(extra)}, data_offset=64)
    with pytest.raises(TensorsCorrupt, match="'t'"):
        Contents.of(header)


def shards_of(name: str, shape: tuple[int, ...], cuts: list[list[int]]) -> list[StoredShard]:
    parts: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for of_axis in cuts:
        spans = [(low, high - low) for low, high in pairwise(of_axis)]
        parts = [((*offsets, low), (*sizes, size)) for offsets, sizes in parts for low, size in spans]
    found = []
    for offsets, sizes in parts:
        num_bytes = 4
        for size in sizes:
            num_bytes *= size
        found.append(
            StoredShard(
                name=name,
                dtype="torch.float32",
                shape=shape,
                offsets=offsets,
                sizes=sizes,
                stored_dtype="F32",
                stored_sizes=sizes,
                num_bytes=num_bytes,
            )
        )
    return found


def packed(shards: list[StoredShard]) -> Pack:
    filled = pack_bytes(sum(shard.num_bytes for shard in shards))
    return Pack(shards=tuple(shards), refs=(make_ref(bytes(filled), partitions=16),))


def alone(shard: StoredShard) -> Pack:
    return Pack(shards=(shard,), refs=(make_ref(bytes(shard.num_bytes), partitions=16),))
