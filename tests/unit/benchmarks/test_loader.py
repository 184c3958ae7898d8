"""The loader benchmark without its peers: ratios, bars, tables, the chart, and the sample sets."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chart import chart
from benchmarks.loader import sets
from benchmarks.loader.cells import BARS, CELLS, Kind
from benchmarks.loader.report import bar_table, cell_table, groups, to_json, to_markdown
from benchmarks.loader.results import Result, reached
from benchmarks.loader.sides.base import num_samples, rows_of

CELL = CELLS[0]
FIRST = next(cell for cell in CELLS if cell.kind is Kind.FIRST)


def result(side: str, *, figure: float, cell: str = CELL.name, in_seconds: bool = False) -> Result:
    figures = (figure / 2, figure, figure * 2)
    return Result(
        cell=cell,
        side=side,
        figures=figures,
        in_seconds=in_seconds,
        cpu_us=None if in_seconds else 1.0,
        resident_bytes=(1 << 20,),
    )


RESULTS = [
    result("Forebay", figure=1000),
    result("LitData", figure=100),
    result("WebDataset", figure=10),
    result("gather alone", figure=4000),
    result("Forebay", figure=0.1, cell=FIRST.name, in_seconds=True),
    result("LitData", figure=0.3, cell=FIRST.name, in_seconds=True),
]


def unpadded(table: str) -> str:
    return re.sub(" +", " ", table)


def test_a_bar_is_about_the_best_peer_and_not_about_a_limit() -> None:
    assert reached(BARS[0], CELL, RESULTS) == ("LitData", 10.0)
    assert reached(BARS[0], CELL, RESULTS[:1]) is None


def test_fewer_seconds_are_faster() -> None:
    assert RESULTS[4].times_as_fast_as(RESULTS[5]) == pytest.approx(3.0)


def test_tables_say_ratios_and_verdicts() -> None:
    assert "| LitData | 100 | 50.0 to 200 | 10.00x |" in unpadded(cell_table(CELL, RESULTS))
    bars = unpadded(bar_table(RESULTS))
    assert "LitData, the best peer | 10.00x | 8x | PASS |" in bars
    assert "the clock | 0.100 s | 0.2 s | PASS |" in bars
    assert cell_table(FIRST, RESULTS) in to_markdown({"machine": "m"}, RESULTS)
    assert json.loads(to_json({}, RESULTS))["bars"][0]["reached"] == ["LitData", 10.0]


def test_the_chart_has_a_row_for_each_side_beside_forebay() -> None:
    drawn = groups(RESULTS)
    assert [[row.label for row in group.rows] for group in drawn] == [
        ["as LitData", "as WebDataset", "as gather alone"],
        ["as LitData"],
    ]
    assert [row.wanted for row in drawn[0].rows] == [8.0, None, None]
    ElementTree.fromstring(chart(drawn, subtitle="a & b"))


def test_every_bar_is_about_a_cell_and_every_cell_is_judged_by_forebay() -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    assert {bar.cell for bar in BARS} <= set(names)
    assert all(cell.sides[0].module == "forebay" for cell in CELLS)


def test_rows_are_arrays_bytes_and_integers_and_repeat(tmp_path: Path) -> None:
    np.save(tmp_path / "blob.npy", np.frombuffer(b"abbccc", np.uint8))
    np.save(tmp_path / "blob_offsets.npy", np.array([0, 1, 3, 6]))
    np.save(tmp_path / "blob_label.npy", np.arange(3))
    rows = list(rows_of(sets.load(sets.BLOBS, tmp_path), 4))
    assert rows == [
        {"blob": b"a", "label": 0},
        {"blob": b"bb", "label": 1},
        {"blob": b"ccc", "label": 2},
        {"blob": b"a", "label": 0},
    ]


@pytest.mark.parametrize("item", [{"a": [1, 2, 3]}, [[1, 2, 3], 0], np.zeros((3, 2)), {"a": np.zeros((3, 2)), "b": 1}])
def test_samples_of_a_batch_are_counted(item: object) -> None:
    assert num_samples(item) == 3
