"""Datasets that MosaicML's, LitData's, WebDataset's and Hugging Face's own libraries wrote (tests/golden/peers), row by row."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loader.source_rows import RowError, SourceError
from loader.sources import open_source
from tests.golden.peers.rows import NUM_ROWS, rows
from tests.unit.loader.read_source import rows_of, types_of

GOLDEN = Path(__file__).parents[2] / "golden" / "peers"
TYPES = {
    "id": "int64",
    "score": "float64",
    "flag": "bool",
    "text": "str",
    "blob": "bytes",
    "small": "uint8",
    "tokens": "uint16[8]",
    "matrix": "float32[2,3]",
    "ragged": "int32[*]",
    "extra": "json",
}
MDS = {name: name for name in TYPES if name != "flag"}
LITDATA = {**{name: name for name in ("id", "score", "flag", "text", "blob", "tokens", "matrix")}, "deep.ragged": "ragged"}
WEBDATASET = {"cls": "id", "txt": "text", "json": "extra", "npy": "tokens", "bin": "blob"}
HUGGING_FACE = {name: name for name in ("id", "score", "flag", "text", "blob", "tokens", "matrix", "ragged")}


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ("mds", MDS),
        ("mds-zstd", MDS),
        ("litdata", LITDATA),
        ("litdata-chunk", LITDATA),
        ("litdata-batch", LITDATA),
        ("litdata-sample", LITDATA),
        ("webdataset", WEBDATASET),
        ("webdataset.tar.gz", WEBDATASET),
        ("huggingface", HUGGING_FACE),
        ("huggingface/*.arrow", HUGGING_FACE),
    ],
)
def test_what_their_libraries_wrote_is_read(inputs: str, names: Mapping[str, str]) -> None:
    source = open_source([GOLDEN / inputs])
    types = {name: str(column_type) for name, column_type in types_of(source).items() if name != "__key__"}
    assert types == {name: TYPES[held] for name, held in names.items()}
    found = rows_of(source)
    assert len(found) == NUM_ROWS
    for row, expected in zip(found, rows(), strict=True):
        for name, held in names.items():
            assert row[name] == (expected[held].tolist() if isinstance(expected[held], np.ndarray) else expected[held]), name


def test_keys_labels_and_names_are_kept() -> None:
    keys = [row["__key__"] for row in rows_of(open_source([GOLDEN / "webdataset.tar.gz"]))]
    assert keys == [f"in/{'a' * 120}/{number}" for number in range(NUM_ROWS)]
    assert json.loads(open_source([GOLDEN / "huggingface"]).metadata["labels"]) == [f"class {number}" for number in range(9)]


def test_several_folders_follow_each_other_and_columns_are_chosen_and_narrowed() -> None:
    columns = {"tokens": "int32[8]", "id": "int8", "matrix": "float64[2,3]"}
    for names in (("mds", "mds-zstd"), ("litdata", "litdata-batch")):
        found = rows_of(open_source([GOLDEN / name for name in names]), columns)
        assert [row["id"] for row in found] == [*range(NUM_ROWS), *range(NUM_ROWS)]
        assert found[9] == {"tokens": rows()[2]["tokens"].tolist(), "id": 2, "matrix": rows()[2]["matrix"].tolist()}
    with pytest.raises(RowError, match=r"shard\.00000\.mds, row 1: column 'tokens': expected uint8\[8\]"):
        rows_of(open_source([GOLDEN / "mds"]), {"tokens": "uint8[8]"})


def test_nested_samples_and_tokens_of_litdata() -> None:
    found = rows_of(open_source([GOLDEN / "litdata-nested"]))
    assert found == [{"id": row["id"], "extra.k": row["extra"]["k"], "extra.ü": "ö"} for row in rows()]
    found = rows_of(open_source([GOLDEN / "litdata-arrow"]))
    assert found == [{"id": row["id"], "text": row["text"], "more": {"k": [row["id"]]}} for row in rows()]
    found = rows_of(open_source([GOLDEN / "litdata-tokens"]))
    assert found == [{"data": row["tokens"].tolist()} for row in rows()]


@pytest.mark.parametrize("name", ["mds-pickle", "litdata-pickle"])
def test_pickles_are_never_loaded_but_may_be_kept(name: str) -> None:
    source = open_source([GOLDEN / name])
    with pytest.raises(SourceError, match=r"to load a pickle is to run a program.*--columns thing=bytes"):
        rows_of(source)
    assert rows_of(source, {"id": "int64"}) == [{"id": 1}]
    assert rows_of(source, {"thing": "bytes"})[0]["thing"].startswith(b"\x80")


def copied(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return apply


def cut(name: str, num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-num_bytes])


def flip(name: str, place: int) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 0x40
        (folder / name).write_bytes(data)

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("mds", cut("shard.00001.mds", 3), r"shard.00001.mds: 862 bytes, but index.json says 865"),
        ("mds", flip("shard.00001.mds", -1), r"shard.00001.mds: its sha1 is [0-9a-f]+, but index.json says"),
        ("mds", lambda folder: (folder / "shard.00000.mds").unlink(), "shard 0: the file shard.00000.mds isn't there"),
        ("mds", edit(lambda index: index["shards"][0].update(version=3)), "expected format mds, version 2"),
        ("mds", edit(lambda index: index["shards"][0].pop("samples")), "shard 0: malformed: KeyError"),
        ("mds", edit(lambda index: index["shards"][0].update(samples=3)), "says 4 rows, but the index says 3"),
        ("mds", edit(lambda index: index["shards"].clear()), "lists no shards"),
        ("mds-zstd", cut("shard.00000.mds.zstd", 3), "its sha1 is"),
        ("mds-zstd", edit(lambda index: index["shards"][0].update(compression="br")), "zstd, gz and bz2 are read"),
        ("litdata", cut("chunk-0-1.bin", 1), "chunk-0-1.bin: 415 bytes, but index.json says 416"),
        ("litdata", flip("chunk-0-0.bin", 8), "chunk-0-0.bin: its table of rows leads out|don't add up"),
        ("litdata", edit(lambda index: index["config"].update(encryption={"level": "chunk"})), "the chunks are encrypted"),
        ("litdata", edit(lambda index: index["config"].update(item_loader="ParquetLoader")), "written for ParquetLoader"),
        ("litdata", edit(lambda index: index["config"]["data_format"].append("int")), "9 data formats for the leaves"),
        ("litdata-chunk", cut("chunk-0-0.zstd.bin", 9), "can't be decompressed"),
        ("litdata-batch", flip("chunk-0-0.bin", 0), "doesn't begin with b'LDFZ01"),
        ("litdata-arrow", flip("chunk-0-1.bin", -1), "doesn't end with b'LDARW01"),
        ("litdata-nested", flip("chunk-0-0.bin", 44), "column 'extra.k': the value is no json"),
        ("huggingface", cut("data-00001-of-00002.arrow", 8), "doesn't end as an Arrow stream does"),
        ("huggingface", lambda folder: (folder / "data-00001-of-00002.arrow").unlink(), "which isn't there"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    folder = copied(tmp_path, name)
    damage(folder)
    with pytest.raises(SourceError, match=words):
        rows_of(open_source([folder]))


def test_sizes_in_a_row_are_held_against_the_row(tmp_path: Path) -> None:
    folder = copied(tmp_path, "mds")
    path = folder / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    data[start] += 1  # the size of the first value that varies
    path.write_bytes(data)
    digest = hashlib.sha1(data).hexdigest()
    edit(lambda index: index["shards"][0]["raw_data"]["hashes"].update(sha1=digest))(folder)
    with pytest.raises(SourceError, match="row 0: its values don't add up to its"):
        rows_of(open_source([folder]))


def test_a_frame_that_announces_too_much_allocates_nothing(tmp_path: Path) -> None:
    folder = copied(tmp_path, "mds-zstd")
    edit(lambda index: [shard["raw_data"].update(bytes=10) for shard in index["shards"]])(folder)
    with pytest.raises(SourceError, match=r"a zstd frame of [0-9]+ bytes, expected at most 10"):
        rows_of(open_source([folder]))


def test_columns_of_shards_agree(tmp_path: Path) -> None:
    folder = copied(tmp_path, "mds")
    edit(lambda index: index["shards"][1]["column_names"].__setitem__(0, "other"))(folder)
    with pytest.raises(RowError, match=r"shard\.00001\.mds: column 'blob': expected bytes, found only the columns"):
        rows_of(open_source([folder]))


def test_what_is_not_the_dataset_itself_is_said() -> None:
    with pytest.raises(SourceError, match=r"a shard of MDS; give the folder that its index\.json is in"):
        open_source([GOLDEN / "mds" / "shard.00000.mds"])
    with pytest.raises(SourceError, match=r"\(LitData\) is of another kind than .*\(MDS\)"):
        open_source([GOLDEN / "mds", GOLDEN / "litdata"])


class Square(pa.ExtensionType):  # type: ignore[misc]
    """An array type as a library of others registers it."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.list_(pa.float32())), "tests.square")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Square:
        return cls()


def test_types_that_a_library_in_this_process_knows_are_what_they_are_stored_as(tmp_path: Path) -> None:
    stored = pa.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], Square().storage_type)
    table = pa.table({"square": pa.ExtensionArray.from_storage(Square(), stored)})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    pa.register_extension_type(Square())
    try:
        source = open_source([tmp_path / "a.arrow"])
        assert {name: str(column_type) for name, column_type in types_of(source).items()} == {"square": "float32[2,2]"}
        assert [row["square"] for row in rows_of(source)] == stored.to_pylist()
    finally:
        pa.unregister_extension_type("tests.square")
