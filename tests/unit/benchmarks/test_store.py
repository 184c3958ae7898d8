"""The store benchmark without a store: statistics, the registry of cells and bars, the report and the chart."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from fnmatch import fnmatchcase

import pytest

from benchmarks.chart import chart
from benchmarks.store import usage
from benchmarks.store.bars import BARS, Bar
from benchmarks.store.cells import CELLS
from benchmarks.store.chart import groups
from benchmarks.store.clients import repeat
from benchmarks.store.mixed import Memory, MixedResult, slope_per_min
from benchmarks.store.operations import MIB, Get, Mixed, Put, new_body, renew
from benchmarks.store.report import bar_table, cell_table, to_json, to_markdown
from benchmarks.store.results import Figure, Result, Unit, percentile
from benchmarks.store.sides import Side

CELL = CELLS[0]


def result(side: str, *, rate: float = 100.0, server_cpu_s: float | None = 1.0, p99_ms: float | None = 2.0) -> Result:
    return Result(
        cell=CELL.name,
        side=side,
        unit=Unit.MB,
        rates=(rate / 2, rate, rate * 2),
        calls=300,
        p50_ms=1.0,
        p99_ms=p99_ms,
        server_cpu_s=server_cpu_s,
        client_cpu_s=0.5,
        server_peak_bytes=64 * MIB,
        stream_mb_per_s=None,
    )


class Recorded:
    """A connection that keeps what it was asked for."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.stored: list[tuple[str, bytes]] = []

    def get_into(self, key: str, buffer: memoryview) -> None:
        self.got.append((key, len(buffer)))

    def put(self, key: str, body: bytearray) -> None:
        self.stored.append((key, bytes(body)))


# Statistics


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.51, 3), (0.99, 4), (0.01, 1), (1.0, 4)])
def test_percentile_is_the_least_value_that_the_share_does_not_exceed(share: float, expected: int) -> None:
    assert percentile([1, 2, 3, 4], share) == expected


def test_a_cost_is_better_the_smaller_it_is() -> None:
    ours, theirs = result("a", rate=200, server_cpu_s=0.5, p99_ms=1.0), result("b", server_cpu_s=2.0, p99_ms=3.0)
    assert Figure.RATE.times_as_good(ours, theirs) == 2.0
    assert Figure.P99.times_as_good(ours, theirs) == 3.0
    assert Figure.SERVER_CPU.times_as_good(ours, theirs) == 4.0
    assert Figure.CPU.times_as_good(ours, theirs) == 2.5


def test_what_was_not_measured_is_not_compared() -> None:
    assert Figure.SERVER_CPU.times_as_good(result("a"), result("b", server_cpu_s=None)) is None
    assert Figure.CPU.times_as_good(result("a", server_cpu_s=None), result("b")) is None


def test_memory_slope_is_a_minute_and_of_the_second_half() -> None:
    assert slope_per_min([5, 6, 7], every_s=1.0) == pytest.approx(60)
    assert slope_per_min([5], every_s=1.0) == 0
    assert Memory(samples_bytes=(0, 1000, 7, 7, 7)).slope_bytes_per_min == pytest.approx(0)


# Cells and bars


def test_every_bar_compares_two_sides_of_a_cell_that_there_is() -> None:
    labels = {cell.name: cell.entries.keys() for cell in CELLS}
    assert len(labels) == len(CELLS)
    for bar in BARS:
        assert {bar.side, bar.other} <= labels[bar.cell]


def test_cells_can_be_sent_to_a_client_process() -> None:
    for cell in CELLS:
        for entry in cell.entries.values():
            assert pickle.loads(pickle.dumps(entry.operation)) == entry.operation


def test_a_glob_chooses_cells_of_one_size() -> None:
    assert all(fnmatchcase(cell.name, "* 4 KiB*") == ("4 KiB" in cell.name) for cell in CELLS)


# Operations and clients


def test_get_reads_the_objects_that_are_there_and_put_never_repeats_itself() -> None:
    connection = Recorded()
    get, put = Get(size_bytes=4096, num_objects=3), Put(size_bytes=4096)
    step = get.prepare(connection, client=0)
    for _ in range(40):
        step()
    assert set(connection.got) == set(get.objects.items())
    steps = [put.prepare(connection, client=client) for client in (0, 1)]
    for step in steps * 3:
        step()
    keys, bodies = zip(*connection.stored, strict=True)
    assert len(set(keys)) == len(set(bodies)) == 6


def test_each_chunk_of_a_body_is_a_new_one() -> None:
    body = new_body(20 * MIB)
    chunks = {bytes(body[start : start + 8 * MIB]) for start in range(0, len(body), 8 * MIB)}
    renew(body)
    chunks |= {bytes(body[start : start + 8 * MIB]) for start in range(0, len(body), 8 * MIB)}
    assert len(body) == 20 * MIB
    assert len(chunks) == 6


def test_mixed_load_touches_only_its_objects_one_call_in_ten_a_put() -> None:
    connection, mixed = Recorded(), Mixed(objects_per_size=2)
    step = mixed.prepare(connection, client=1)
    for _ in range(300):
        step()
    touched = {*connection.got, *((key, len(body)) for key, body in connection.stored)}
    assert touched <= set(mixed.objects.items())
    assert 10 <= len(connection.stored) <= 60


def test_a_client_repeats_until_its_time_is_over_and_counts_failures_apart() -> None:
    answers = iter([None, ConnectionError("refused"), None])
    now_s = time.monotonic()

    def step() -> None:
        answer = next(answers, StopIteration)
        if answer is StopIteration:
            time.sleep(0.05)  # Past the end.
        elif isinstance(answer, Exception):
            raise answer

    tally = repeat(step, start_s=now_s, end_s=now_s + 0.03)
    assert len(tally.latencies_s) == 3
    assert tally.errors == ["ConnectionError: refused"]
    assert 0 < tally.calls_per_s < 3 / 0.05


# Usage


def test_usage_sees_a_process_and_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= usage.tree([os.getpid()])
        assert child.stdin is not None
        child.stdin.close()
    own = [os.getpid()]
    usage.reset_peaks(own)
    assert usage.cpu_s(own) == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert 0 < usage.resident_bytes(own) <= usage.peak_bytes(own) * 1.1


# Report


def test_a_bar_is_judged_by_what_was_measured_and_left_out_otherwise() -> None:
    results = [result(Side.FOREBAY, rate=90), result(Side.NGINX, rate=100)]
    bars = [Bar(cell=CELL.name, side=Side.FOREBAY, other=Side.NGINX, wanted=wanted) for wanted in (0.9, 0.91)]
    absent = Bar(cell=CELL.name, side=Side.FOREBAY, other=Side.FILER, wanted=1.0)
    lines = bar_table([*bars, absent], results).splitlines()[4:]
    assert [line.split("|")[-2].strip() for line in lines] == ["PASS", "short"]


def test_a_table_names_every_side_and_leaves_no_gap() -> None:
    table = cell_table(CELL, [result(Side.FOREBAY), result(Side.FILER, rate=50, server_cpu_s=None, p99_ms=None)])
    _, header, rule, *rows = [line for line in table.splitlines() if line]
    assert len(rows) == 2
    assert len({len(line) for line in (header, rule, *rows)}) == 1
    assert [cell.strip() for cell in rows[1].split("|")[1:6]] == ["SeaweedFS filer", "50.0", "25.0 to 100", "2.00x", "1.00"]


def test_the_whole_report_and_its_json_can_be_written() -> None:
    memory = Memory(samples_bytes=(MIB, 2 * MIB))
    mixed = MixedResult(
        seconds=2.0,
        clients=8,
        calls_per_s=10.0,
        p50_ms=1.0,
        p99_ms=2.0,
        errors=("StoreError: no",),
        nodes=memory,
        client_processes=memory,
    )
    results = [result(Side.FOREBAY)]
    written = to_markdown({"nginx": "1.22"}, CELLS, results, BARS, mixed)
    assert "- nginx: 1.22" in written
    assert "1 errors, the first: StoreError: no" in written
    assert json.loads(to_json({}, results, BARS, mixed))["results"][0]["median"] == 100.0


def test_the_chart_has_a_bar_for_each_side_beside_the_judged_one() -> None:
    results = [result(Side.FOREBAY), result(Side.NGINX, rate=1000), result(Side.FILER, rate=30)]
    tree = ElementTree.fromstring(chart(groups(CELLS, results, BARS), subtitle="a & b"))
    widths = [float(rect.attrib["width"]) for rect in tree.iter() if rect.tag.endswith("rect")]
    words = [text.text for text in tree.iter() if text.tag.endswith("text")]
    assert len(widths) == 1 + 2 + 4  # the background, the bars, the legend
    assert {"a & b", CELL.name, "0.10x", "of 0.9x", "3.33x", "of 2.5x"} <= set(words)
