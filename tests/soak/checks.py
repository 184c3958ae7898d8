"""What has to hold at the end of a soak, once everything was healed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import groupby

from client.client import Client
from client.errors import ObjectNotFound, StoreError
from client.health import Health
from client.verify import verify
from storenode.chunkfile import parse_name
from tests.soak.clients import BUCKET
from tests.soak.cluster import SoakCluster
from tests.soak.history import History
from tests.soak.ledger import PREFIX, Entry, Ledger
from tests.soak.operator import Operator
from tests.support.linearizability import SearchTooLarge, check

__all__ = ["check_chunks_left", "check_contended", "check_garbage", "check_ledger", "wait_for_copies"]

POLL_S = 1.0
READ_S = 120.0


def check_contended(history: History) -> None:
    """Every contended key is linearizable, and versions grow with time."""
    try:
        for found in check(history.operations):
            history.violation(str(found))
    except SearchTooLarge as error:
        history.violation(f"whether the history is linearizable could not be found out: {error}")
    written = {(op.key, op.tag) for op in history.operations if op.kind == "put" and op.outcome != "refused"}
    for key, tag in sorted(history.outdated - written):
        history.violation(f"{key}: somebody saw {tag}, which was never written")
    for key, writes in groupby(sorted(history.versions), key=lambda write: write[0]):
        _check_versions(history, key, [write[1:] for write in writes])


def _check_versions(history: History, key: str, writes: Iterable[tuple[int, int, int]]) -> None:
    """A write that began after another had returned has the higher version."""
    returned = sorted((returned, version) for _, returned, version in writes)
    highest, place = 0, 0
    for called, _, version in writes:
        while place < len(returned) and returned[place][0] < called:
            highest = max(highest, returned[place][1])
            place += 1
        if version <= highest:
            history.violation(f"{key}: version {version} was written after version {highest} had been acknowledged")


def wait_for_copies(client: Client, history: History, *, deadline_s: float) -> None:
    """Wait until every copy of everything is there and right, re-hashed where it lies."""
    end_s, health, told = time.monotonic() + deadline_s, None, 0
    while health is None or not health.clean:
        if time.monotonic() > end_s:
            history.violation(f"after {deadline_s:.0f} s without faults copies are still lacking: {_lack(health)}")
            return
        if health is not None:
            time.sleep(POLL_S)
        try:
            health = verify(client, client.walk(BUCKET, versions=True))
        except StoreError as error:
            history.failed("verify", error)
        else:
            if (lack := health.copies_expected - health.copies_ok) != told:
                history.event(f"{lack} of {health.copies_expected} copies are lacking")
                told = lack
    history.count("copies verified", health.copies_ok)


def _lack(health: Health | None) -> str:
    if health is None:
        return "they could not be counted"
    worst = [
        f"{short.info.bucket}/{short.info.key}: {short.least_copies} copies {short.problem}" for short in health.shortfalls
    ]
    return (
        f"{health.copies_missing} missing, {health.copies_corrupt} corrupt, {health.copies_unreachable} unreachable; "
        f"{worst[:5]}; silent: {health.silent_nodes}"
    )


def check_chunks_left(cluster: SoakCluster, operator: Operator, history: History) -> None:
    """Of every chunk of an acknowledged object some disk has a copy, whoever lost his."""
    referred = operator.referred() or {}
    # Twice, for a copy may come to a disk that was looked at while it leaves one that was not.
    lost = referred.keys() - _on_disks(cluster) and referred.keys() - _on_disks(cluster)
    for info in {referred[chunk].key: referred[chunk] for chunk in lost}.values():
        if operator.is_current(info):
            history.violation(f"{info.key} version {info.version} was acknowledged, and a chunk of it is on no disk any more")
    history.count("chunks looked for on all disks", len(referred))


def _on_disks(cluster: SoakCluster) -> set[tuple[int, bytes]]:
    return {name for node in cluster.nodes for path in node.disk.chunks() if (name := parse_name(path.name)) is not None}


def check_garbage(cluster: SoakCluster, operator: Operator, history: History) -> None:
    """No disk holds what no record refers to. Copies that lie where no layout places them any more are counted."""
    wanted = operator.wanted()
    if wanted is None:
        history.violation("what is referred to can't be told although nothing is broken")
        return
    referred = {(partition, chunk_id) for _, partition, chunk_id in wanted}
    for node in cluster.nodes:
        named = [(path, parse_name(path.name)) for path in node.disk.chunks()]
        garbage = [path for path, name in named if name not in referred]
        if garbage:
            history.violation(f"{node.name} still has {len(garbage)} chunks that nothing refers to, such as {garbage[:3]}")
        history.count("chunk files at the end", len(named))
        history.count("of them misplaced", sum((node.node_id, *name) not in wanted for _, name in named if name))


def check_ledger(client: Client, ledger: Ledger) -> None:
    """All that was acknowledged is there with its bytes, all that was deleted is gone, and listings say the same."""
    listed = {info.key: info.version for info in client.walk(BUCKET, prefix=PREFIX)}
    for entry in list(ledger.entries.values()):
        _check_entry(client, ledger, entry)
        if entry.state == "held" and listed.get(entry.key) != entry.version:
            ledger.history.violation(f"{entry.key} version {entry.version} is not in the listing at the end")
        if entry.state == "gone" and entry.key in listed:
            ledger.history.violation(f"{entry.key} was deleted and is in the listing at the end")
    ledger.history.count("ledger entries read at the end", len(ledger.entries))


def _check_entry(client: Client, ledger: Ledger, entry: Entry) -> None:
    try:
        data = client.get(BUCKET, entry.key)
    except ObjectNotFound:
        ledger.missed(entry, was=entry.state, who="the check at the end")
    except StoreError as error:
        ledger.history.violation(f"{entry.key} can't be read although nothing is broken: {error}")
    else:
        ledger.found(entry, data, was=entry.state, who="the check at the end")
