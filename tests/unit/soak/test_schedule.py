"""The schedule of faults is a function of its seed, leaves no kind out, and names what there is."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tests.soak.links import RULES
from tests.soak.schedule import FAULTS, OF_ETCD, Round, rounds


def first(seed: int, number: int) -> list[Round]:
    return list(islice(rounds(seed, kinds=FAULTS, num_nodes=4, num_members=3), number))


def test_a_seed_gives_the_same_rounds_each_time() -> None:
    assert first(1, 50) == first(1, 50)
    assert first(1, 50) != first(2, 50)


def test_every_kind_comes_as_often_as_the_others() -> None:
    counts = Counter(fault.kind for planned in first(3, 200) for fault in planned.faults)
    assert set(counts) == set(FAULTS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_faults_strike_nodes_and_members_that_there_are_and_overlap() -> None:
    planned = first(4, 200)
    for fault in (fault for one in planned for fault in one.faults):
        assert 0 <= fault.node < 4
        of_members = fault.kind in (*OF_ETCD, "part-etcd", "stale-member")
        assert 0 <= fault.other < (3 if of_members else 4)
        assert of_members or fault.other != fault.node
        assert fault.rule in RULES
        assert str(fault).startswith(fault.kind)
    pairs = [(a, b) for one in planned for a, b in zip(one.faults, one.faults[1:], strict=False)]
    assert all(a.after_s <= b.after_s for a, b in pairs)
    assert any(b.after_s < a.after_s + a.for_s for a, b in pairs)


def test_only_the_kinds_that_are_asked_for_come() -> None:
    planned = islice(rounds(5, kinds=["kill", "flip"], num_nodes=4, num_members=3), 20)
    assert {fault.kind for one in planned for fault in one.faults} == {"kill", "flip"}
