"""One soak: a cluster, clients, faults, and the checks at the end."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

from client.client import Client
from storenode.grants import Verb
from tests.soak.access import Pass, Renewed, Tenant, Warden
from tests.soak.checks import check_contended, check_garbage, check_ledger, wait_for_copies
from tests.soak.clients import BUCKET, HOT, Contender
from tests.soak.cluster import SoakCluster, running
from tests.soak.history import History
from tests.soak.ledger import PREFIX, Ledger, LedgerReader, LedgerWriter, Lister
from tests.soak.nemesis import Nemesis
from tests.soak.operator import Operator
from tests.soak.plain_http import HttpContender
from tests.soak.schedule import FaultKind
from tests.soak.snapshots import Snapshotter, check_snapshots
from tests.support.cluster import CHUNK_BYTES, CLIENT

__all__ = ["Report", "Settings", "soak"]

CHANGE: tuple[Verb, ...] = ("read", "write", "delete")
NUM_CONTENDERS, NUM_HTTP, NUM_WRITERS, NUM_READERS = 4, 2, 2, 2
COPIES_S = 900.0
JOIN_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked for.

    Attributes
    ----------
    faults_s : float
        How long faults strike; checks come on top.
    only : tuple of FaultKind
        The kinds that strike; empty for all.
    pause_s : float
        Mean pause of each client between two calls.
    """

    seed: int
    faults_s: float
    only: tuple[FaultKind, ...] = ()
    pause_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it."""

    settings: Settings
    history: History
    took_s: float

    @property
    def ok(self) -> bool:
        return not self.history.violations

    def __str__(self) -> str:
        history, seed = self.history, self.settings.seed
        ended = "no violation" if self.ok else f"{len(history.violations)} VIOLATIONS"
        lines = [f"seed {seed}, {self.settings.faults_s:.0f} s of faults, {self.took_s:.0f} s in all: {ended}"]
        lines += [f"{number:9,}  {what}" for what, number in sorted(history.counts.items())]
        lines += [f"{len(history.operations):9,}  operations on contended keys in the history"]
        if not self.ok:
            lines += ["", f"What happened (seed {seed}):", *history.events, "", *history.violations]
        return "\n".join(lines)


class _Stepper(Protocol):
    def step(self) -> None: ...


def soak(settings: Settings, directory: Path, *, on_event: Callable[[str], None] = lambda line: None) -> Report:
    """Run one soak in an empty directory; ends early if a promise is broken."""
    started_s = time.monotonic()
    history = History(on_event=on_event)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, CLIENT))
        cluster = stack.enter_context(running(directory, on_death=history.violation))
        admin = stack.enter_context(Client(cluster.endpoints, token=Pass.of_operator(cluster.secret).token()))
        admin.buckets.create(BUCKET)
        ledger = Ledger(history=history)
        operator = Operator(admin, history)
        nemesis = Nemesis(cluster, history, operator, seed=settings.seed, only=settings.only)
        history.event(f"begins with {', '.join(nemesis.kinds)}")
        with _clients(cluster, ledger, settings) as snapshotter:
            nemesis.work(until_s=time.monotonic() + settings.faults_s, stop=history.broken)
        nemesis.heal()
        if not history.broken.is_set():
            nemesis.await_repair(deadline_s=COPIES_S)
            operator.settle(deadline_s=COPIES_S)
            wait_for_copies(admin, history, deadline_s=COPIES_S)
            check_ledger(admin, ledger)
            check_snapshots(admin, snapshotter, history)
            operator.await_collection(deadline_s=COPIES_S)
            check_garbage(cluster, operator, history)
            wait_for_copies(admin, history, deadline_s=COPIES_S)
        check_contended(history)
    return Report(settings=settings, history=history, took_s=time.monotonic() - started_s)


@contextmanager
def _clients(cluster: SoakCluster, ledger: Ledger, settings: Settings) -> Iterator[Snapshotter]:
    """All clients, at work for the length of the block; who makes snapshots still has some afterwards."""
    history, stop = ledger.history, threading.Event()
    with ExitStack() as stack:
        steppers = _steppers(cluster, ledger, seed=settings.seed, stack=stack)
        threads = [
            threading.Thread(target=_work, name=f"soak-{name}", args=(name, stepper, history, stop, settings), daemon=True)
            for name, stepper in steppers.items()
        ]
        for thread in threads:
            thread.start()
        try:
            snapshotter = steppers["snapshots"]
            assert isinstance(snapshotter, Snapshotter)
            yield snapshotter
        finally:
            stop.set()
            for thread in threads:
                thread.join(JOIN_S)
                if thread.is_alive():
                    history.violation(f"{thread.name} does not come back from its call")


def _steppers(cluster: SoakCluster, ledger: Ledger, *, seed: int, stack: ExitStack) -> Mapping[str, _Stepper]:
    """All clients by name, each with a token for what it does; `stack` ends them."""
    steppers: dict[str, _Stepper] = {}
    history, secret, endpoints = ledger.history, cluster.secret, cluster.endpoints

    def rng(name: str) -> random.Random:
        return random.Random(f"{name} {seed}")

    def tokens(name: str, *verbs: Verb, prefix: str = "") -> Renewed:
        return Renewed(Pass(secret, *verbs, prefix=prefix), history, rng=rng(f"tokens {name}"))

    def clients(name: str, *verbs: Verb, prefix: str = "") -> Tenant:
        # Each begins at another node.
        order = rng(name).sample(endpoints, len(endpoints))
        return stack.enter_context(Tenant(order, tokens(name, *verbs, prefix=prefix)))

    for name in (f"c{n}" for n in range(NUM_CONTENDERS)):
        steppers[name] = Contender(clients(name, *CHANGE, prefix=HOT), history, name=name, rng=rng(name))
    for name in (f"h{n}" for n in range(NUM_HTTP)):
        renewed = tokens(name, *CHANGE, prefix=HOT)
        steppers[name] = HttpContender(
            endpoints, renewed, lambda: cluster.pinned, history, name=name, rng=rng(name), chunk_bytes=CHUNK_BYTES
        )
    for name in (f"w{n}" for n in range(NUM_WRITERS)):
        steppers[name] = LedgerWriter(clients(name, *CHANGE, prefix=PREFIX), ledger, name=name, rng=rng(name))
    for name in (f"r{n}" for n in range(NUM_READERS)):
        steppers[name] = LedgerReader(clients(name, "read", prefix=PREFIX), ledger, name=name, rng=rng(name))
    steppers["lister"] = Lister(clients("lister", "read", prefix=PREFIX), ledger, name="lister", rng=rng("lister"))
    steppers["snapshots"] = Snapshotter(clients("snapshots", "read", "admin"), ledger, name="snap", rng=rng("snapshots"))
    steppers["warden"] = stack.enter_context(Warden(endpoints, secret, cluster.clocks, history, rng=rng("warden")))
    return steppers


def _work(name: str, stepper: _Stepper, history: History, stop: threading.Event, settings: Settings) -> None:
    pauses = random.Random(f"pauses {name} {settings.seed}")
    while not stop.wait(pauses.expovariate(1 / settings.pause_s)):
        try:
            stepper.step()
        except Exception as error:
            history.failed(name, error)
