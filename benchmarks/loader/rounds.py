"""One cell measured: sides in processes of their own take turns, round after round, so that noise meets all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loader.cells import Cell, Kind, SideSpec
from benchmarks.loader.results import Result
from benchmarks.loader.sets import load

__all__ = ["Amounts", "Where", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Rounds, least seconds of a side's turn, seconds after which an epoch is broken off, epochs for memory."""

    rounds: int
    min_s: float
    max_s: float
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Directories and addresses of a run."""

    work: Path
    arrays: Path
    files_url: str
    peers_python: Path


class SideProcess:
    """A side's process, which answers commands."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": command, **arguments}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended at {command}: its log says why")
        return json.loads(answer)


@contextmanager
def running(spec: SideSpec, where: Where) -> Iterator[SideProcess]:
    """A side's process, ended when the context is left."""
    python = where.peers_python if spec.is_peer else Path(sys.executable)
    command = [str(python), "-m", "benchmarks.loader.turns", spec.module, spec.class_name]
    with (where.work / f"{spec.class_name}.log").open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            yield SideProcess(process)
        finally:
            process.kill()
            process.communicate()


def measure(cell: Cell, where: Where, amounts: Amounts) -> tuple[list[Result], Mapping[str, str]]:
    """Figures of all sides, and the versions of their packages."""
    with ExitStack() as stack:
        lanes = [_Lane(cell, spec, stack.enter_context(running(spec, where)), where) for spec in cell.sides]
        versions = {package: number for lane in lanes for package, number in lane.side.ask("versions").items()}
        for lane in lanes:
            lane.prepare()
        os.sync()  # What writing left in memory would be written out during the first rounds.
        for _ in range(1 if cell.kind is Kind.MEMORY else amounts.rounds):
            for lane in lanes:
                lane.turn(amounts)
        return [lane.result() for lane in lanes], versions


class _Lane:
    """One side in its cell, and what came of its turns."""

    def __init__(self, cell: Cell, spec: SideSpec, side: SideProcess, where: Where) -> None:
        self.side = side
        self._cell, self._spec, self._where = cell, spec, where
        self._answers: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Write the set if it is not there, and say what the turns are about."""
        cell, where = self._cell, self._where
        own = f"{self._spec.class_name}/{cell.chosen.name.replace(' ', '-')}{'-z' if cell.compressed else ''}"
        place = {
            "set": cell.chosen.name,
            "names": list(load(cell.chosen, where.arrays)),
            "data": str(where.arrays if self._spec.is_limit else where.work / "files" / own),
            "url": f"{where.files_url}/{own}",
            "cache": str(where.work / "caches" / own),
            "compressed": cell.compressed,
            "cold": cell.kind in (Kind.COLD, Kind.MEMORY) or (cell.kind is Kind.FIRST and not self._spec.is_peer),
        }
        if not self._spec.is_limit:
            self.side.ask("write", arrays=str(where.arrays), **place)
        self.side.ask("place", batch_size=None if cell.singly else cell.chosen.batch_size, **place)

    def turn(self, amounts: Amounts) -> None:
        """One turn."""
        arguments: dict[str, Any] = {}
        match self._cell.kind:
            case Kind.WARM | Kind.COLD:
                arguments = {"min_s": amounts.min_s, "max_s": amounts.max_s}
            case Kind.RESUME:
                arguments = {"batches": int(self._cell.part * self._cell.chosen.rows / self._cell.chosen.batch_size)}
            case Kind.MEMORY:
                arguments = {"epochs": amounts.epochs}
        self._answers.append(self.side.ask(self._cell.kind.value, **arguments))

    def result(self) -> Result:
        """The figures of all turns."""
        cell, answers = self._cell, self._answers
        figures: list[float] = []
        cpu_us, resident, before = None, (), 0
        if cell.in_seconds:
            figures = [answer["seconds"] for answer in answers]
        elif cell.kind is Kind.MEMORY:
            resident, before = tuple(answers[0]["peaks"]), answers[0]["before"]
        else:
            figures = [answer["samples"] / answer["wall_s"] for answer in answers]
            cpu_us = 1e6 * sum(answer["cpu_s"] for answer in answers) / sum(answer["samples"] for answer in answers)
            resident = tuple(answer["resident_bytes"] for answer in answers)
        return Result(
            cell=cell.name,
            side=self._spec.name,
            figures=tuple(sorted(figures)),
            in_seconds=cell.in_seconds,
            cpu_us=cpu_us,
            resident_bytes=resident,
            before_bytes=before,
        )
