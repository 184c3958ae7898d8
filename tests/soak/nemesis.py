"""Carries the schedule out on a cluster, heals it, and keeps damage within what is promised.

All actions come from one thread, so that the list of events is the order in which things happened.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from storenode.chunkfile import parse_name
from tests.soak.checks import check_chunks_left
from tests.soak.cluster import CLIENTS, NUM_MEMBERS, NUM_NODES, SoakCluster, SoakNode
from tests.soak.history import History
from tests.soak.links import Rule
from tests.soak.operator import Operator
from tests.soak.schedule import FAULTS, Fault, FaultKind, Round, rounds
from tests.support.etcd import Member

__all__ = ["Nemesis"]

HEAL_S = 300.0
# No upload that was under way when a file was damaged commits after this.
UPLOADS_END_S = 30.0
POLL_S = 1.0


class Nemesis:
    """What strikes the cluster.

    Parameters
    ----------
    operator : Operator
        For scrubs and changes of the layout, and to ask what is referred to.
    only : collection of FaultKind
        The kinds that strike; empty for all that this machine allows.
    """

    def __init__(
        self, cluster: SoakCluster, history: History, operator: Operator, *, seed: int, only: Collection[FaultKind]
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._operator = operator
        self._rng = random.Random(f"nemesis {seed}")
        self._damaged_s = 0.0
        self._is_disk_lost = False
        self.kinds = [kind for kind in self._possible() if kind in only or not only]
        self._rounds = rounds(seed, kinds=self.kinds, num_nodes=NUM_NODES, num_members=NUM_MEMBERS)
        self._strikes: dict[FaultKind, Callable[[Fault], Callable[[], None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "part": self._part,
            "isolate": self._isolate,
            "part-clients": self._part_clients,
            "part-etcd": self._part_etcd,
            "kill-etcd-leader": self._kill_leader,
            "pause-etcd": self._pause_member,
            "isolate-member": self._isolate_member,
            "stale-member": self._outdate_member,
            "fill": self._fill,
            "flip": self._damage,
            "cut": self._damage,
            "wipe": self._wipe,
            "lone-copy": self._lose_lone_copies,
            "clock": self._set_clock,
            "scrub": self._scrub,
            "drain": self._drain,
            "remove": self._remove,
            "weight": self._weigh,
            "zone": self._move,
            "gc": self._collect,
        }

    def _possible(self) -> list[FaultKind]:
        """The kinds that this machine allows."""
        nodes = self._cluster.nodes
        without = [] if all(node.clock for node in nodes) else ["clock"]
        without += [] if all(node.disk.own for node in nodes) else ["fill"]
        if without:
            self._history.event(f"this machine does not allow {', '.join(without)}")
        return [kind for kind in FAULTS if kind not in without]

    def work(self, *, until_s: float, stop: threading.Event) -> None:
        """Round after round, until a moment of the monotonic clock; the last one is healed."""
        while time.monotonic() < until_s and not stop.is_set():
            self._round(next(self._rounds), stop)

    def heal(self) -> None:
        """Take back all that a round may have left: links, clocks, full disks, paused and dead processes."""
        cluster = self._cluster
        cluster.network.heal_all()
        for member in cluster.etcd.members:
            _revive(member)
        self._await_etcd()
        for node in cluster.nodes:
            node.disk.free()
            cluster.signal(node, signal.SIGCONT)
            if node.clock is not None:
                node.clock.set(0)
        end_s = time.monotonic() + HEAL_S
        for node in cluster.nodes:
            while not cluster.try_to_start(node):
                assert time.monotonic() < end_s, f"{node.name} does not start although everything was healed"

    def await_repair(self, *, deadline_s: float) -> None:
        """Scrub until no damage is left; one scrub is not enough if it had passed what was lost since it began."""
        end_s = time.monotonic() + deadline_s
        while not self.repair():
            if time.monotonic() > end_s:
                left = {node.name: sorted(path.name for path in node.disk.damaged)[:5] for node in self._cluster.nodes}
                self._history.violation(f"after {deadline_s:.0f} s without faults copies are not repaired: {left}")
                return
            time.sleep(POLL_S)

    def repair(self) -> bool:
        """Have damaged nodes scrub; whether all that was damaged is right again, or belongs to nothing any more."""
        damaged = [node for node in self._cluster.nodes if node.disk.still_damaged()]
        for node in damaged:
            self._operator.scrub(node.node_id)
        if damaged and time.monotonic() - self._damaged_s > UPLOADS_END_S:
            self._forgive(damaged)
        return not any(node.disk.damaged for node in damaged)

    def _await_etcd(self) -> None:
        end_s = time.monotonic() + HEAL_S
        while True:
            try:
                self._cluster.etcd.await_health()
                return
            except AssertionError:
                if time.monotonic() > end_s:
                    raise

    def _round(self, planned: Round, stop: threading.Event) -> None:
        ends: list[tuple[float, Fault, Callable[[], None]]] = []
        begun_s = time.monotonic()
        for fault in planned.faults:
            self._end_those_due(ends, begun_s, until_s=fault.after_s, stop=stop)
            if stop.is_set():
                break
            self._history.event(str(fault))
            self._history.count(f"fault {fault.kind}")
            ends.append((fault.after_s + fault.for_s, fault, self._strikes[fault.kind](fault)))
        self._end_those_due(ends, begun_s, until_s=float("inf"), stop=stop)
        self.heal()
        self._history.event("healed")
        if self._is_disk_lost:
            self._is_disk_lost = False
            check_chunks_left(self._cluster, self._operator, self._history)
        self._operator.proceed()
        stop.wait(planned.calm_s)

    def _end_those_due(
        self, ends: list[tuple[float, Fault, Callable[[], None]]], begun_s: float, *, until_s: float, stop: threading.Event
    ) -> None:
        for due in sorted([item for item in ends if item[0] <= until_s], key=lambda item: item[0]):
            stop.wait(max(0.0, begun_s + due[0] - time.monotonic()))
            ends.remove(due)
            due[2]()
            self._history.event(f"end of {due[1].kind}")
        if until_s != float("inf"):
            stop.wait(max(0.0, begun_s + until_s - time.monotonic()))

    # Faults: each strikes and returns what ends it

    def _kill(self, fault: Fault) -> Callable[[], None]:
        node = self._node(fault)
        self._cluster.kill(node)

        def restart() -> None:
            if not self._cluster.try_to_start(node):
                self._history.event(f"{node.name} can't start now")

        return restart

    def _pause(self, fault: Fault) -> Callable[[], None]:
        node = self._node(fault)
        self._cluster.signal(node, signal.SIGSTOP)
        return lambda: self._cluster.signal(node, signal.SIGCONT)

    def _part(self, fault: Fault) -> Callable[[], None]:
        names = self._cluster.names
        return self._cut_by(fault, [(names[fault.node], names[fault.other])])

    def _isolate(self, fault: Fault) -> Callable[[], None]:
        name = self._node(fault).name
        return self._cut_by(fault, [(name, other) for other in self._cluster.names if other != name])

    def _part_clients(self, fault: Fault) -> Callable[[], None]:
        return self._cut_by(fault, [(CLIENTS, self._node(fault).name)], both_ways=False)

    def _part_etcd(self, fault: Fault) -> Callable[[], None]:
        members = range(NUM_MEMBERS) if fault.both_ways else [fault.other]
        return self._cut_by(fault, [(self._node(fault).name, f"m{n}") for n in members], both_ways=False)

    def _kill_leader(self, _: Fault) -> Callable[[], None]:
        try:
            member = self._cluster.etcd.leader()
        except AssertionError:  # none now, because of another fault
            return _nothing
        member.kill()
        return lambda: _revive(member)

    def _pause_member(self, fault: Fault) -> Callable[[], None]:
        process = self._cluster.etcd.members[fault.other].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        return lambda: process.send_signal(signal.SIGCONT)

    def _isolate_member(self, fault: Fault) -> Callable[[], None]:
        others = [f"m{n}" for n in range(NUM_MEMBERS) if n != fault.other]
        return self._cut_by(fault, [(f"m{fault.other}", other) for other in others])

    def _outdate_member(self, fault: Fault) -> Callable[[], None]:
        """What is read through this node must not be what that member knew last."""
        member, node = f"m{fault.other}", self._node(fault)
        others = [f"m{n}" for n in range(NUM_MEMBERS) if n != fault.other]
        ends = [
            self._cut("refuse", [(node.name, other) for other in others]),
            self._cut("silence", [pair for other in others for pair in [(member, other), (other, member)]]),
        ]
        # A member without a leader soon knows it, so somebody has to ask at once.
        self._cluster.pinned = node.url

        def end() -> None:
            self._cluster.pinned = None
            for heal in ends:
                heal()

        return end

    def _fill(self, fault: Fault) -> Callable[[], None]:
        disk = self._node(fault).disk
        # Above the reserve some chunks still fit, and then the disk itself says no.
        disk.fill(leave_bytes=fault.amount << 20)
        return disk.free

    def _damage(self, fault: Fault) -> Callable[[], None]:
        node = self._node(fault)
        if not self._may_damage(node):
            return _nothing
        number = node.disk.damage(fault.kind, self._rng, num_files=fault.amount)
        self._damaged_s = time.monotonic()
        self._history.count(f"files damaged by {fault.kind}", number)
        # First the readers may find it.
        return lambda: self._operator.scrub(node.node_id)

    def _wipe(self, fault: Fault) -> Callable[[], None]:
        """The node comes back with its name and without its chunks."""
        node = self._node(fault)
        if not self._may_damage(node):
            return _nothing
        restart = self._kill(fault)
        self._history.count(f"files lost by {fault.kind}", node.disk.wipe())
        self._is_disk_lost = True
        self._damaged_s = time.monotonic()

        def end() -> None:
            restart()
            self._operator.scrub(node.node_id)

        return end

    def _lose_lone_copies(self, fault: Fault) -> Callable[[], None]:
        """Clients reach the node, which reaches no other: what it took without another's help is lost with its disk."""
        node = self._node(fault)
        others = [other for other in self._cluster.names if other != node.name]
        heal = self._cut("refuse", [pair for other in others for pair in [(node.name, other), (other, node.name)]])

        def end() -> None:
            # First the disk: nobody is to fetch from it what nobody else has.
            restart = self._wipe(fault)
            heal()
            restart()

        return end

    def _may_damage(self, node: SoakNode) -> bool:
        self.repair()
        allowed = not any(other.disk.damaged for other in self._cluster.nodes if other is not node)
        if not allowed:
            self._history.event(f"not now: another disk's damage is not repaired yet, so {node.name} is left alone")
        return allowed

    def _set_clock(self, fault: Fault) -> Callable[[], None]:
        clock = self._node(fault).clock
        assert clock is not None
        clock.set(fault.amount)
        return lambda: clock.set(0)

    def _scrub(self, fault: Fault) -> Callable[[], None]:
        self._operator.scrub(self._node(fault).node_id)
        return _nothing

    def _drain(self, fault: Fault) -> Callable[[], None]:
        """Begun, and taken back before it is done, as a rule."""
        node_id = self._node(fault).node_id
        if self._operator.leaving is not None:
            self._history.event("not now: a node is being removed")
            return _nothing
        self._operator.change("drain", node_id)

        def end() -> None:
            self._operator.change("add", node_id)

        return end

    def _remove(self, fault: Fault) -> Callable[[], None]:
        """Drained, removed when it is empty, added back: that takes more than one round."""
        self._operator.replace(self._node(fault).node_id)
        self._operator.proceed()
        return self._operator.proceed

    def _weigh(self, fault: Fault) -> Callable[[], None]:
        self._operator.change("weight", self._node(fault).node_id, weight=fault.amount / 10)
        return _nothing

    def _move(self, fault: Fault) -> Callable[[], None]:
        self._operator.change("zone", self._node(fault).node_id, zone=f"zone-{fault.amount}")
        return _nothing

    def _collect(self, _: Fault) -> Callable[[], None]:
        self._operator.collect()
        return _nothing

    # What faults are made of

    def _cut_by(self, fault: Fault, pairs: Iterable[tuple[str, str]], *, both_ways: bool | None = None) -> Callable[[], None]:
        both = fault.both_ways if both_ways is None else both_ways
        rule: Rule = fault.rule  # type: ignore[assignment]
        return self._cut(
            rule, [pair for source, target in pairs for pair in [(source, target), *([(target, source)] if both else [])]]
        )

    def _cut(self, rule: Rule, pairs: Sequence[tuple[str, str]]) -> Callable[[], None]:
        for pair in pairs:
            self._cluster.network.cut(*pair, rule)

        def heal() -> None:
            for pair in pairs:
                self._cluster.network.heal(*pair)

        return heal

    def _node(self, fault: Fault) -> SoakNode:
        return self._cluster.nodes[fault.node]

    def _forgive(self, nodes: Iterable[SoakNode]) -> None:
        """Forget damaged files of chunks to which no record refers, or which no layout places there any more."""
        wanted = self._operator.wanted()
        if wanted is None:
            return
        for node in nodes:
            for path in list(node.disk.damaged):
                named = parse_name(path.name)
                if named is None or (node.node_id, *named) not in wanted:
                    node.disk.forgive(path)


def _nothing() -> None:
    pass


def _revive(member: Member) -> None:
    """Start a member that does not run; wake one that is paused."""
    if member.process is None or member.process.poll() is not None:
        member.start()
    else:
        member.process.send_signal(signal.SIGCONT)
