"""`forebay dataset ...` over a store in memory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from client.cli.app import build_app
from client.errors import AllReplicasFailed
from client.manifest import Ref
from client.record import ObjectInfo
from loader.block import BlockTable
from loader.dataset_record import METADATA_KEY
from loader.errors import BlockCorrupt
from loader.reader import DatasetReader
from loader.writer import ShardWriter
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import watched_store

Forebay = Callable[..., Result]
URL = "forebay://data/sets/rows"


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with watched_store() as (store, _, _):
        yield store


@pytest.fixture
def forebay(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forebay]:
    """Run a command line against `store`, and expect the exit code `code`."""
    monkeypatch.setattr("client.cli.connection.Client", lambda *args, **options: store)
    monkeypatch.setattr(store, "close", lambda: None)

    def run(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(build_app(), ["dataset", *args], prog_name="forebay")
        assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}"
        return result

    yield run
    monkeypatch.undo()


def write_rows(store: FakeStore, num_rows: int = 1000, **options: Any) -> ObjectInfo:
    columns = {"tokens": "uint16[64]", "text": "str", "blob": "bytes"}
    with ShardWriter(URL, columns, client=store, **{"num_lanes": 4, "block_size_bytes": 8192, **options}) as writer:
        for row in range(num_rows):
            tokens = np.arange(row, row + 64, dtype=np.uint16)
            writer.write({"tokens": tokens, "text": f"text\t{row}\x1b[31m", "blob": bytes([row % 256]) * 20})
    assert writer.info is not None
    return writer.info


# --- build


def test_build_shows_the_columns_and_what_it_made(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": row, "text": "x" * row}) + "\n" for row in range(100)))
    ran = forebay("build", str(path), "data/sets/rows")
    assert "columns (inferred from the first rows; --columns takes others): id=int64, text=str" in ran.stderr
    assert ran.stdout.startswith("built forebay://data/sets/rows: 100 rows, 2 columns, 1 lane; ")
    ran = forebay("build", str(path), URL, "--columns", "id=uint8", "--num-lanes", "4", "--compression", "none", "--json")
    assert "columns (as given): id=uint8" in ran.stderr
    value = json.loads(ran.stdout)
    assert (value["rows"], value["lanes"], value["columns"]) == (100, 4, [{"name": "id", "type": "uint8"}])
    reader = DatasetReader(store, "data", "sets/rows")
    assert (value["digest"], value["version"]) == (reader.index.digest, reader.info.version)
    assert [row["id"] for row in reader.rows()] == list(range(100))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rows.jsonl", "forebay://data/x", "--columns", "id=uint4"], "column type 'uint4'"),
        (
            ["rows.jsonl", "forebay://data/x", "--columns", "id=str"],
            "rows.jsonl, line 1: column 'id': expected str, found int 1",
        ),
        (["rows.jsonl", "forebay://data/x", "--compression", "lz4"], "compression 'lz4': expected none or zstd:1 to zstd:22"),
        (["rows.jsonl", "forebay://data/x", "--num-lanes", "5000"], "num_lanes=5000: expected 1 to 1024"),
        (["rows.jsonl", "forebay://other/x"], "`forebay bucket create other`"),
        (["rows.jsonl", "data"], "names no object"),
        (["no.jsonl", "data/x"], "no.jsonl: no such file or folder"),
    ],
)
def test_build_refuses_what_is_wrong(
    forebay: Forebay, store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n')
    ran = forebay("build", *args, code=1)
    assert words in ran.stderr
    assert not ran.stdout
    assert not store.fake_catalog.history


# --- info


def test_info_tells_what_a_dataset_is(forebay: Forebay, store: FakeStore) -> None:
    info = write_rows(store)
    value = json.loads(forebay("info", URL, "--json").stdout)
    assert (value["rows"], value["lanes"], value["version"]) == (1000, 4, info.version)
    assert value["blocks"] == sum(lane.num_blocks for lane in DatasetReader(store, "data", "sets/rows").index.lanes)
    assert [column["name"] for column in value["columns"]] == ["tokens", "text", "blob"]
    assert value["columns"][0]["decoded_bytes"] == 1000 * 128
    # Offsets count: one more than there are rows, for each of the blocks.
    assert value["columns"][2]["decoded_bytes"] == 1000 * 28 + 8 * value["blocks"]
    assert value["decoded_bytes"] == sum(column["decoded_bytes"] for column in value["columns"])
    assert sum(column["stored_bytes"] for column in value["columns"]) < value["stored_bytes"] == info.size
    # Two replicas of four lanes, spread over the three nodes as evenly as it goes.
    assert sum(node["lanes"] for node in value["nodes"]) == 8
    assert sum(node["first_lanes"] for node in value["nodes"]) == 4
    assert max(node["lanes"] for node in value["nodes"]) <= 3
    assert value["warning"] is None
    text = forebay("info", "data/sets/rows").stdout
    assert f"digest\t{value['digest']}" in text
    assert "tokens\tuint16[64]\t" in text


def test_info_warns_of_more_ranks_than_lanes(forebay: Forebay, store: FakeStore) -> None:
    write_rows(store)
    assert "warning" not in forebay("info", URL, "--world-size", "4").stderr
    assert "warning: 8 ranks share 4 lanes: each block is fetched by about 2.0 ranks" in (
        forebay("info", URL, "--world-size", "8").stderr
    )
    assert "8 ranks share 4 lanes" in json.loads(forebay("info", URL, "--world-size", "8", "--json").stdout)["warning"]


def test_info_leaves_out_sizes_that_cost_too_much(forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(store)
    monkeypatch.setattr("loader.summary.MAX_TABLES_BYTES", 10)
    value = json.loads(forebay("info", URL, "--json").stdout)
    assert (value["decoded_bytes"], value["ratio"], value["columns"][0]["stored_bytes"]) == (None, None, None)


def test_an_empty_dataset_has_info_head_and_verify(forebay: Forebay, store: FakeStore) -> None:
    write_rows(store, 0)
    assert json.loads(forebay("info", URL, "--json").stdout)["rows"] == 0
    assert forebay("head", URL).stdout == ""
    assert "0 rows in 0 blocks" in forebay("verify", URL).stdout


@pytest.mark.parametrize("command", ["info", "head", "verify"])
def test_what_is_no_dataset_is_named(forebay: Forebay, store: FakeStore, command: str) -> None:
    assert "there is no dataset forebay://data/nowhere" in forebay(command, "data/nowhere", code=1).stderr
    store.put("data", "plain", b"some bytes" * 100)
    assert "forebay://data/plain: no Forebay dataset" in forebay(command, "data/plain", code=1).stderr
    assert "names no object" in forebay(command, "data", code=1).stderr


# --- head


def test_head_prints_rows_for_people_and_whole_rows_for_programs(forebay: Forebay, store: FakeStore) -> None:
    write_rows(store)
    text = forebay("head", URL, "-n", "2").stdout
    assert text.splitlines()[:2] == ["row 0", "  tokens  uint16[64]  [0 1 2 3 ... 60 61 62 63]"]
    assert "row 1\n" in text and "row 2" not in text
    assert r"'text\t1\x1b[31m'" in text and "\x1b" not in text
    assert "20 bytes 01010101 01010101 01010101 01010101 ..." in text
    rows = [json.loads(line) for line in forebay("head", URL, "--json").stdout.splitlines()]
    assert [row["text"] for row in rows] == [f"text\t{number}\x1b[31m" for number in range(5)]
    assert rows[3]["tokens"] == list(range(3, 67))
    assert base64.b64decode(rows[3]["blob"]["base64"]) == b"\3" * 20


def test_head_shows_every_type(forebay: Forebay, store: FakeStore) -> None:
    columns = {"f": "float32[3]", "c": "complex64", "b": "bool", "j": "json", "r": "int8[*]", "s": "str"}
    with ShardWriter(URL, columns, client=store) as writer:
        writer.write(
            {"f": [1, float("nan"), float("inf")], "c": 1 + 2j, "b": True, "j": {"a": [1]}, "r": [1, 2], "s": "ü" * 500}
        )
    value = json.loads(forebay("head", URL, "--json").stdout, parse_constant=pytest.fail)
    expected = {"f": [1.0, "nan", "inf"], "c": [1.0, 2.0], "b": True, "j": {"a": [1]}, "r": [1, 2], "s": "ü" * 500}
    assert value == expected
    lines = forebay("head", URL).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["row", *columns]
    assert max(map(len, lines)) < 130
    assert [line.split(maxsplit=2)[2] for line in lines[1:6]] == [
        "[1. nan inf]",
        "(1+2j)",
        "True",
        "{'a': [1]}",
        "2 of [1 2]",
    ]


# --- verify


def test_verify_decodes_everything(forebay: Forebay, store: FakeStore) -> None:
    write_rows(store)
    reader = DatasetReader(store, "data", "sets/rows")
    ran = forebay("verify", URL)
    assert f"1000 rows in {reader.num_blocks} blocks" in ran.stdout
    assert f"all as written; digest {reader.index.digest}" in ran.stdout
    value = json.loads(forebay("verify", URL, "--json").stdout)
    assert (value["clean"], value["digest"], value["faults"]) == (True, reader.index.digest, [])


def test_verify_names_the_block_that_is_not_as_written(
    forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(store)
    real = DatasetReader.read_block_into

    def damage(self: DatasetReader, lane: int, block: int, columns: Any, outs: Any) -> Any:
        if (lane, block, list(columns)) == (2, 1, [1]):
            raise BlockCorrupt(f"{self.url}, lane 2, block 1, column 'text': the decoded bytes have another checksum")
        if (lane, block, list(columns)) == (3, 0, [0]):
            raise AllReplicasFailed("chunk 1/ab can't be read from any of 2 replicas")
        return real(self, lane, block, columns, outs)

    monkeypatch.setattr(DatasetReader, "read_block_into", damage)
    ran = forebay("verify", URL, code=1)
    assert "fault: lane 2, block 1, column 'text': the decoded bytes have another checksum" in ran.stderr
    assert "fault: lane 3, block 0, column 'tokens': chunk 1/ab can't be read" in ran.stderr
    assert "2 faults; " in ran.stdout
    value = json.loads(forebay("verify", URL, "--json", code=1).stdout)
    places = [(fault["lane"], fault["block"], fault["column"]) for fault in value["faults"]]
    assert places == [(2, 1, "text"), (3, 0, "tokens")]
    assert value["digest"] is None


def test_verify_sees_decoded_bytes_that_pass_the_check_of_another_table(
    forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(store)
    real = DatasetReader.read_block_into

    def swap(self: DatasetReader, lane: int, block: int, columns: Any, outs: Any) -> Any:
        answer = real(self, lane, block, columns, outs)
        if (lane, block, list(columns)) == (0, 0, [0]):
            outs[0][:2] = b"\xff\xff"
        return answer

    monkeypatch.setattr(DatasetReader, "read_block_into", swap)
    value = json.loads(forebay("verify", URL, "--json", code=1).stdout)
    assert "have digest" in value["faults"][0]["problem"]


def test_verify_reports_lost_chunks_and_tables(forebay: Forebay, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    info = write_rows(store, 6000, compression="none")
    reader = DatasetReader(store, "data", "sets/rows")
    lane = reader.index.lanes[1]
    lost: Ref = next(iter(store.reader(info).spans(lane.offset, lane.offset + 1))).ref
    for node in store.fake_chunks.nodes.values():
        node.pop((lost.partition, lost.id), None)
    assert "fault: lane 1, block 0, column 'tokens': " in forebay("verify", URL, code=1).stderr

    def gone(self: DatasetReader, lane: int) -> BlockTable:
        raise AllReplicasFailed("all copies are gone")

    monkeypatch.setattr(DatasetReader, "table", gone)
    assert "fault: lane 1: block table: all copies are gone" in forebay("verify", URL, code=1).stderr


def test_verify_sees_metadata_that_says_otherwise(forebay: Forebay, store: FakeStore) -> None:
    info = write_rows(store)
    history = store.fake_catalog.history["data", "sets/rows"]
    changed = replace(info.record, metadata={METADATA_KEY: '{"format":1,"digest":"00","rows":7}'})
    history[0] = replace(info, record=changed)
    assert "the object's metadata says forebay-dataset" in forebay("verify", URL, code=1).stderr
