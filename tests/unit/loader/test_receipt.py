"""Receipts: counters of one iteration, between two readings of the meters."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from loader import receipt as module
from loader.receipt import Meters, Receipt, joules_now


class Totals:
    """Meters that a test moves."""

    def __init__(self) -> None:
        self.failovers, self.wall_s, self.cpu_s = 3, 100.0, 10.0
        self.joules: float | None = 5000.0

    def meters(self) -> Meters:
        return Meters(
            failovers=lambda: self.failovers,
            wall_s=lambda: self.wall_s,
            cpu_s=lambda: self.cpu_s,
            joules=lambda: self.joules,
        )


def test_receipt_tells_differences_and_stops_at_its_end() -> None:
    totals = Totals()
    receipt = Receipt(epoch=4, blocks_per_sample=0.25, meters=totals.meters())
    totals.failovers, totals.wall_s, totals.cpu_s, totals.joules = 5, 104.0, 16.5, 5060.0
    with receipt.stalled():
        totals.wall_s += 1.5
    receipt.samples += 8
    receipt.add(bytes_cache=10, bytes_remote=20, blocks=2)
    receipt.end()
    totals.wall_s = totals.cpu_s = 1e9
    assert receipt.to_dict() == {
        "epoch": 4,
        "samples": 8,
        "stall_s": 1.5,
        "bytes_cache": 10,
        "bytes_remote": 20,
        "blocks": 2,
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
            receipt.add(blocks=1, bytes_remote=2)

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = receipt.to_dict()
    assert (found["blocks"], found["bytes_remote"]) == (8000, 16000)


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
