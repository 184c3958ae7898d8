"""Receipts: counters of one iteration, between two readings of the meters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from client.replica import ReadTotals
from loader import receipt as module
from loader.receipt import Meters, Receipt, joules_now, receipt_table


class Totals:
    """Meters that a test moves."""

    def __init__(self) -> None:
        self.store = ReadTotals(bytes_remote=1000, bytes_wasted=1, failovers=3)
        self.wall_s, self.cpu_s = 100.0, 10.0
        self.joules: float | None = 5000.0

    def meters(self) -> Meters:
        return Meters(
            store=lambda: replace(self.store),
            wall_s=lambda: self.wall_s,
            cpu_s=lambda: self.cpu_s,
            joules=lambda: self.joules,
        )


def test_receipt_tells_differences_and_stops_at_its_end() -> None:
    totals = Totals()
    receipt = Receipt(epoch=4, blocks_per_sample=0.25, meters=totals.meters())
    totals.wall_s, totals.cpu_s, totals.joules = 104.0, 16.5, 5060.0
    totals.store = ReadTotals(
        bytes_local=7, bytes_remote=1020, bytes_other_zone=5, bytes_hedged=6, bytes_wasted=3, hedges=1, failovers=5
    )
    with receipt.stalled():
        totals.wall_s += 1.5
    receipt.samples += 8
    receipt.add(bytes_cache=10, blocks=2)
    receipt.add(blocks_kept=3)
    receipt.end()
    totals.wall_s = totals.cpu_s = 1e9
    assert receipt.to_dict() == {
        "epoch": 4,
        "samples": 8,
        "stall_s": 1.5,
        "stalls": [],
        "bytes_cache": 10,
        "bytes_local": 7,
        "bytes_remote": 20,
        "bytes_other_zone": 5,
        "bytes_hedged": 6,
        "bytes_wasted": 2,
        "hedges": 1,
        "blocks": 2,
        "blocks_kept": 3,
        "read_amplification": 1.0,
        "failovers": 2,
        "wall_s": 5.5,
        "cpu_s": 6.5,
        "joules": 60.0,
    }


def test_receipt_of_an_iteration_under_way_goes_on() -> None:
    totals = Totals()
    receipt = Receipt(epoch=0, blocks_per_sample=0.25, meters=totals.meters())
    totals.wall_s += 1
    assert receipt.to_dict()["wall_s"] == 1
    assert receipt.to_dict()["read_amplification"] is None
    totals.wall_s += 1
    assert receipt.to_dict()["wall_s"] == 2


def test_stall_counts_when_the_wait_ends_with_an_error() -> None:
    totals = Totals()
    receipt = Receipt(epoch=0, blocks_per_sample=0.25, meters=totals.meters())
    with pytest.raises(KeyboardInterrupt), receipt.stalled():
        totals.wall_s += 2
        raise KeyboardInterrupt
    assert receipt.stall_s == 2


def test_threads_add_without_losing_any() -> None:
    receipt = Receipt(epoch=0, blocks_per_sample=0.25, meters=Totals().meters())

    def add() -> None:
        for _ in range(2000):
            receipt.add(blocks=1, bytes_cache=2)

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = receipt.to_dict()
    assert (found["blocks"], found["bytes_cache"]) == (8000, 16000)


def test_unknown_energy_is_not_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    totals = Totals()
    totals.joules = None
    assert Receipt(epoch=0, blocks_per_sample=0.25, meters=totals.meters()).to_dict()["joules"] is None
    monkeypatch.setattr(module, "_RAPL", tmp_path)
    assert joules_now() is None
    for number, energy in enumerate(("1500000", "500000")):
        (tmp_path / f"intel-rapl:{number}").mkdir()
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(energy + "\n")
    assert joules_now() == 2.0
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").mkdir()  # Can't be read, not even by root.
    assert joules_now() is None


def test_the_table_tells_every_field_and_the_last_stalls() -> None:
    totals = Totals()
    receipt = Receipt(epoch=4, blocks_per_sample=0.25, meters=totals.meters())
    assert "blocks decoded       0\n" in receipt_table({"rank": 0, "warnings": [], **receipt.to_dict()})
    fields = ("bytes_local", "bytes_remote", "bytes_other_zone", "bytes_hedged", "bytes_wasted", "hedges", "failovers")
    numbers = [10**6 + 11 * place for place in range(len(fields))]
    for name, number in zip(fields, numbers, strict=True):
        setattr(totals.store, name, getattr(totals.store, name) + number)
    receipt.samples = 12_345
    receipt.add(bytes_cache=77_777, blocks=4321)
    receipt.stall_s, totals.wall_s, totals.cpu_s, totals.joules = 1.25, 131.0, 17.0, None
    for number in range(20):
        receipt.note_stall(f"wait {number}")
    table = receipt_table({"rank": 3, "warnings": ["more ranks than lanes"], **receipt.to_dict()})
    assert table.startswith("epoch 4, rank 3: 12,345 samples in 31.00 s\n")
    for words in (
        *(f"{number:,}" for number in numbers),
        "77,777",
        "4,321, 1.40 times",
        "1.25 s of 31.00 s",
        "7.00 s",
        "not told",
    ):
        assert words in table, words
    assert table.endswith("\n  warning: more ranks than lanes")
    assert [line for line in table.splitlines() if "wait " in line] == [f"  stalled: wait {number}" for number in range(4, 20)]
