"""Tensors saved and loaded through the client's real code over a store in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.errors import NotEnoughReplicas, ObjectNotFound, PreconditionFailed
from loader import TensorReader, load_tensors, save_tensors
from loader.errors import InvalidOption, TensorMismatch, TensorsCorrupt
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import WatchedChunks, watched_store

URL = "forebay://data/model"
MIB = 1 << 20


@pytest.fixture
def watched() -> Iterator[tuple[FakeStore, WatchedChunks]]:
    with watched_store(chunk_size_bytes=2 * MIB) as (store, _, chunks):
        yield store, chunks


@pytest.fixture
def store(watched: tuple[FakeStore, WatchedChunks]) -> FakeStore:
    return watched[0]


def kinds() -> dict[str, torch.Tensor]:
    """One tensor of every kind."""
    names = "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64"
    names += " complex32 complex64 complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
    names += " float4_e2m1fn_x2"
    dtypes = [getattr(torch, name) for name in names.split() if hasattr(torch, name)]
    noise = torch.arange(96, dtype=torch.uint8) % 2  # Of these bytes every dtype has values, bool too.
    found = {str(dtype): noise[: 6 * dtype.itemsize].view(dtype).reshape(2, 3).clone() for dtype in dtypes}
    return {
        **found,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(5, 7).t(),
        "expanded": torch.randn(3, 1).expand(3, 4),
        "every other": torch.arange(20)[::2],
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "needs grad": torch.nn.Parameter(torch.randn(3)),
        "large": torch.randn(3 * MIB // 4 + 5),
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    views = [tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*views)


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_tensors_of_every_kind_come_back(store: FakeStore) -> None:
    tensors = kinds()
    save_tensors(URL, tensors, metadata={"step": "7"}, client=store)
    with TensorReader(URL, client=store) as reader:
        assert reader.keys() == sorted(tensors) and reader.metadata == {"step": "7"}
        loaded = reader.load()
        for name, tensor in tensors.items():
            assert same(loaded[name], tensor), name
            assert same(reader[name], tensor), name
            assert reader.num_bytes(name) == tensor.numel() * tensor.dtype.itemsize


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_any_reader_of_the_format_opens_the_object(store: FakeStore, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {name: tensor for name, tensor in kinds().items() if tensor.dtype not in (torch.complex32, torch.complex128)}
    save_tensors(URL, tensors, metadata={"step": "7"}, client=store)
    path = tmp_path / "model.safetensors"
    path.write_bytes(store.get("data", "model"))
    loaded = safetensors.load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_another_library_wrote_is_read(store: FakeStore) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(300, 1000), "b": torch.arange(7)}
    store.put("data", "model", safetensors.save(tensors, metadata={"who": "else"}))
    with TensorReader(URL, client=store) as reader:
        assert reader.metadata == {"who": "else"}
        assert all(same(tensor, tensors[name]) for name, tensor in reader.load().items())
        assert same(reader.load_slice("a", slice(50, 60)), tensors["a"][50:60])


def test_tensors_that_did_not_change_are_not_sent_again(watched: tuple[FakeStore, WatchedChunks]) -> None:
    store, chunks = watched
    tensors = {f"layer{number}": torch.randn(3 * MIB // 4) for number in range(5)}
    save_tensors(URL, tensors, client=store)
    first = sum(chunks.put_sizes)
    chunks.put_sizes.clear()
    # Two more names, one before all others, and one layer that changed.
    changed = {**tensors, "a": torch.randn(10), "b": torch.randn(MIB // 4), "layer2": torch.randn(3 * MIB // 4)}
    save_tensors(URL, changed, client=store)
    new_bytes = sum(4 * changed[name].numel() for name in ("a", "b", "layer2"))
    assert sum(chunks.put_sizes) < new_bytes + 4096 < first / 3
    assert all(same(tensor, changed[name]) for name, tensor in load_tensors(URL, client=store).items())


def test_shared_memory_is_stored_once_and_shared_again(store: FakeStore) -> None:
    table = torch.randn(1000, 300)
    columns = torch.randn(6, 10)
    tensors = {"embedding": table, "head": table, "rows": table[10:20], "left": columns[:, :6], "right": columns[:, 4:]}
    info = save_tensors(URL, tensors, client=store)
    assert info.size < table.nbytes + 4096
    loaded = load_tensors(URL, client=store)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    loaded["head"][10] = 0.0
    loaded["left"][0, 5] = 5.0
    assert not loaded["embedding"][10].any() and not loaded["rows"][0].any() and loaded["right"][0, 1] == 5.0
    # Of ties that are asked for alone, the owner is read and not returned.
    assert load_tensors(URL, ["rows"], client=store).keys() == {"rows"}
    with TensorReader(URL, client=store) as reader:
        assert same(reader.load_slice("right", (slice(1, 3), -1)), columns[1:3, 9])


def test_tensors_are_filled_in_place_and_stay_shared(store: FakeStore) -> None:
    table = torch.randn(600, 500)
    tensors = {"a": table, "b": table, "c": torch.randn(4, 3), "d": torch.randn(3, 4)}
    save_tensors(URL, tensors, client=store)
    shared = torch.zeros(600, 500)
    into = {"a": shared, "b": shared, "c": torch.zeros(4, 3), "d": torch.nn.Parameter(torch.zeros(4, 3)).t()}
    addresses = {name: tensor.data_ptr() for name, tensor in into.items()}
    loaded = load_tensors(URL, into=into, client=store)
    assert all(loaded[name] is into[name] and tensor.data_ptr() == addresses[name] for name, tensor in into.items())
    assert all(same(tensor, tensors[name]) for name, tensor in into.items())


def test_tensors_that_could_be_mapped_are_tensors_like_any_other(store: FakeStore) -> None:
    table = torch.randn(3, MIB // 4)
    tensors = {**kinds(), "table": table, "rows": table[1:], "turned": table.t()}
    save_tensors(URL, tensors, client=store)
    loaded = load_tensors(URL, mmap=True, client=store)
    assert loaded.keys() == tensors.keys()
    assert all(same(tensor, tensors[name]) for name, tensor in loaded.items())
    loaded["rows"].zero_()
    assert not loaded["table"][1:].any() and not loaded["turned"][:, 1:].any() and loaded["table"][0].any()


def test_only_new_tensors_on_the_cpu_can_be_mapped(store: FakeStore) -> None:
    save_tensors(URL, {"a": torch.randn(3)}, client=store)
    for options in ({"into": {"a": torch.zeros(3)}}, {"device": "meta"}):
        with pytest.raises(InvalidOption, match="mmap makes new tensors on the CPU"):
            load_tensors(URL, mmap=True, client=store, **options)


def test_all_that_does_not_fit_is_listed_at_once(store: FakeStore) -> None:
    save_tensors(URL, {"a": torch.randn(3), "b": torch.randn(3), "c": torch.randn(3)}, client=store)
    into = {"a": torch.zeros(4), "b": torch.zeros(3, dtype=torch.int32), "c": torch.zeros(3)}
    with pytest.raises(TensorMismatch, match=r"'a' is torch.float32 of shape \[3\].*\[4\].*'b' is .*torch.int32"):
        load_tensors(URL, into=into, client=store)
    assert not into["c"].any()
    with pytest.raises(TensorMismatch, match="no 'x', 'y'; it has 3 tensors: a, b, c"):
        load_tensors(URL, ["a", "x", "y"], client=store)
    with TensorReader(URL, client=store) as reader, pytest.raises(TensorMismatch, match=r"shape \[2\]"):
        reader.load_slice("a", slice(2), into=torch.zeros(3))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"": torch.zeros(1)}, "'' can't be a name"),
        ({"__metadata__": torch.zeros(1)}, "can't be a name"),
        ({"a": [1.0]}, "'a' is a list"),
        ({"a": torch.zeros(2).to_sparse(), "b": torch.zeros(2, device="meta")}, "'a' is torch.sparse_coo.*'b' is .*meta"),
    ],
)
def test_what_is_no_dense_tensor_is_refused_before_anything_is_sent(
    watched: tuple[FakeStore, WatchedChunks], tensors: Any, message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        save_tensors(URL, tensors, client=watched[0])
    assert not watched[1].put_sizes


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_quantized_tensors_are_refused(store: FakeStore) -> None:
    with pytest.raises(InvalidOption, match="scales"):
        save_tensors(URL, {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, client=store)


def test_pickles_are_named_and_not_executed(store: FakeStore) -> None:
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=zipped)
        store.put("data", "model", file.getvalue())
        with pytest.raises(TensorsCorrupt, match=r"forebay://data/model: .*pickles are never executed"):
            TensorReader(URL, client=store)


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_a_truncated_file_is_named(store: FakeStore, kept: int) -> None:
    save_tensors(URL, {"a": torch.randn(30)}, client=store)
    store.put("data", "model", store.get("data", "model")[:kept])
    with pytest.raises(TensorsCorrupt, match="forebay://data/model"):
        TensorReader(URL, client=store)


def test_nothing_is_visible_of_a_save_that_failed(watched: tuple[FakeStore, WatchedChunks]) -> None:
    store, chunks = watched
    save_tensors(URL, {"a": torch.zeros(3)}, client=store)
    etag = store.stat("data", "model").etag

    def refuse(ref: Any) -> None:
        if ref.size == 2 * MIB:
            raise NotEnoughReplicas("no")

    chunks.before_put = refuse
    with pytest.raises(NotEnoughReplicas):
        save_tensors(URL, {"a": torch.randn(MIB)}, client=store)
    assert store.stat("data", "model").etag == etag


def test_two_savers_to_one_name(store: FakeStore) -> None:
    first = save_tensors(URL, {"a": torch.zeros(3)}, if_none_match="*", client=store)
    with pytest.raises(PreconditionFailed):
        save_tensors(URL, {"a": torch.ones(3)}, if_none_match="*", client=store)
    save_tensors(URL, {"a": torch.ones(3)}, if_match=first.etag, client=store)
    with pytest.raises(PreconditionFailed):
        save_tensors(URL, {"a": torch.zeros(3)}, if_match=first.etag, client=store)
    assert load_tensors(URL, client=store)["a"].all()


def test_a_missing_object_is_the_stores_error(store: FakeStore) -> None:
    with pytest.raises(ObjectNotFound):
        TensorReader(URL, client=store)
