"""One coordinator at a time, and nothing that a former one does counts: who it is, and what its duties do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from client.errors import InvalidRequest, MetadataUnavailable
from client.placement import Layout, Layouts, Node
from client.record import BucketPolicy
from storenode.absence import Absences
from storenode.buckets import Buckets
from storenode.coordinator import Coordinator
from storenode.held import Holdings
from storenode.job import REBALANCE, Job
from storenode.jobs import Jobs, read_jobs
from storenode.layouts import KnownLayouts, change_layouts, create_layout, read_layouts
from storenode.membership import Membership, NodeRecord
from storenode.metastore import Put
from storenode.movement import NodeFacts
from storenode.ownership import Fence, Ownership
from storenode.rebalance import Rebalance
from storenode.reshaping import Reshaping
from storenode.retirement import Retirement
from tests.support.catalogs import open_meta
from tests.support.hooked_meta import HookedMeta
from tests.support.peers import Clock

TTL_S = 10.0
LAYOUT = Layout(version=1, partitions=64, nodes=tuple(Node(id=name, host=name) for name in "abc"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meta(clock: Clock) -> Iterator[HookedMeta]:
    with open_meta(boot_clock=clock) as meta:
        create_layout(meta, LAYOUT)
        yield meta


class Member:
    """A node's lease and its claim."""

    def __init__(self, meta: HookedMeta, name: str) -> None:
        record = NodeRecord(endpoints=(f"http://{name}",), zone="zone-1", host=name, data_dir=f"/{name}")
        self.membership = Membership(meta, node_id=name, record=record, ttl_s=TTL_S)
        self.ownership = Ownership(meta, what="coordinator", node_id=name, lease=lambda: self.membership.lease)
        self.membership.register()


def members(meta: HookedMeta, names: str = "abc") -> list[Member]:
    return [Member(meta, name) for name in names]


def known(meta: HookedMeta) -> KnownLayouts:
    found = read_layouts(meta)
    assert found is not None
    return found


def change(meta: HookedMeta, *nodes: Node) -> None:
    """A new layout of these nodes, the older ones kept."""
    found = known(meta)
    layout = Layout(version=found.layouts.current.version + 1, partitions=64, nodes=nodes)
    layouts = Layouts(current=layout, older=(found.layouts.current, *found.layouts.older))
    assert change_layouts(meta, found, layouts) is not None


def fence_of(meta: HookedMeta, name: str = "a") -> Fence:
    fence = Member(meta, name).ownership.claim()
    assert fence is not None
    return fence


# Ownership


def test_one_node_owns_at_a_time_and_keeps_it(meta: HookedMeta) -> None:
    a, b, _ = members(meta)
    fence = a.ownership.claim()
    assert fence is not None and b.ownership.claim() is None
    assert a.ownership.claim() == fence
    assert a.ownership.owner() == b.ownership.owner() == "a"


def test_another_node_takes_over_when_the_lease_has_run_out_and_the_old_fence_is_worthless(
    meta: HookedMeta, clock: Clock
) -> None:
    a, b, _ = members(meta)
    old = a.ownership.claim()
    assert old is not None
    clock.now_s += TTL_S + 1
    b.membership.step()
    new = b.ownership.claim()
    assert new is not None and new != old
    # The old owner was stopped all the while, and goes on where it was.
    assert not meta.txn([old.holds], [Put(key="x", value=b"old")]).ok
    assert meta.txn([new.holds], [Put(key="x", value=b"new")]).ok
    a.membership.step()
    assert a.ownership.claim() is None


def test_a_node_that_stops_gives_it_up_at_once(meta: HookedMeta) -> None:
    a, b, _ = members(meta)
    assert a.ownership.claim() is not None
    a.membership.stop()
    assert b.ownership.claim() is not None


def test_without_a_lease_nothing_is_owned(meta: HookedMeta, clock: Clock) -> None:
    a, *_ = members(meta)
    assert Ownership(meta, what="coordinator", node_id="x", lease=lambda: None).claim() is None
    clock.now_s += TTL_S + 1  # a's lease has gone, and a has not noticed
    assert a.ownership.claim() is None
    a.membership.step()
    assert a.ownership.claim() is not None


def test_a_node_that_starts_anew_waits_for_the_key_of_its_last_life_to_go(meta: HookedMeta, clock: Clock) -> None:
    assert Member(meta, "a").ownership.claim() is not None
    again = Member(meta, "a")
    assert again.ownership.claim() is None
    clock.now_s += TTL_S / 2
    again.membership.step()
    clock.now_s += TTL_S / 2 + 1
    assert again.ownership.claim() is not None


# The coordinator


def test_only_the_owner_does_its_duties_and_one_that_fails_keeps_nobody_from_theirs(meta: HookedMeta) -> None:
    done: list[tuple[str, str]] = []

    def failing(fence: Fence) -> None:
        raise MetadataUnavailable("no answer")

    a, b, _ = members(meta)
    for name, member in (("a", a), ("b", b)):

        def noting(fence: Fence, name: str = name) -> None:
            done.append((name, fence.key))

        duties = {"first": failing, "second": noting}
        assert Coordinator(member.ownership, duties=duties, period_s=1.5).step() == 1.5
    assert done == [("a", "owner/coordinator")]


# Retirement


def hold(meta: HookedMeta, *names: str) -> None:
    found = known(meta)
    for name in names:
        holdings = Holdings(meta, node_id=name)
        holdings.follow(layout=found.layouts.current.version, incarnation="")
        holdings.complete_to(found.revision)


def test_older_layouts_go_when_every_node_that_is_given_data_is_complete(meta: HookedMeta) -> None:
    change(meta, *LAYOUT.nodes[:2], replace(LAYOUT.nodes[2], state="draining"), Node(id="d"))
    retire, fence = Retirement(meta), fence_of(meta)
    retire(fence)
    hold(meta, "a", "b")
    retire(fence)
    assert [layout.version for layout in known(meta).layouts.older] == [1]
    hold(meta, "d")  # c is draining, so that nobody waits for it
    retire(fence)
    assert known(meta).layouts == Layouts(current=known(meta).layouts.current)
    before = known(meta)
    retire(fence)
    assert known(meta) == before


def test_a_third_layout_waits_for_its_own_nodes_and_then_retires_both(meta: HookedMeta) -> None:
    retire, fence = Retirement(meta), fence_of(meta)
    change(meta, *LAYOUT.nodes, Node(id="d"))
    hold(meta, "a", "b", "c")
    change(meta, *LAYOUT.nodes, Node(id="d"), Node(id="e"))
    hold(meta, "d", "e")
    retire(fence)
    assert [layout.version for layout in known(meta).layouts.older] == [2, 1]
    hold(meta, "a", "b", "c")
    retire(fence)
    assert known(meta).layouts.older == ()


def test_what_was_said_in_another_incarnation_retires_nothing(meta: HookedMeta) -> None:
    change(meta, *LAYOUT.nodes, Node(id="d"))
    for name in "abcd":
        holdings = Holdings(meta, node_id=name)
        holdings.follow(layout=2, incarnation="another")
        holdings.complete_to(known(meta).revision)
    Retirement(meta)(fence_of(meta))
    assert known(meta).layouts.older


def test_a_coordinator_that_was_paused_past_its_lease_retires_nothing(meta: HookedMeta, clock: Clock) -> None:
    change(meta, *LAYOUT.nodes, Node(id="d"))
    fence = fence_of(meta)
    hold(meta, *"abcd")
    clock.now_s += TTL_S + 1
    Retirement(meta)(fence)
    assert known(meta).layouts.older
    Retirement(meta)(fence_of(meta, "b"))
    assert not known(meta).layouts.older


# Absences


def absences(meta: HookedMeta, clock: Clock, *, out_after_s: float) -> Absences:
    reshaping = Reshaping(meta, ask=lambda node_ids: dict.fromkeys(node_ids, NodeFacts(up=True)))
    return Absences(meta, reshaping=reshaping, out_after_s=out_after_s, clock=clock)


def states(meta: HookedMeta) -> str:
    return " ".join(node.state for node in known(meta).layouts.current.nodes)


def test_a_node_that_stays_away_is_drained_after_the_delay_that_was_named(meta: HookedMeta) -> None:
    Member(meta, "b")
    clock, fence = Clock(), fence_of(meta)
    duty = absences(meta, clock, out_after_s=60.0)
    duty(fence)
    clock.now_s += 59
    duty(fence)
    back = Member(meta, "c")  # it returns in time, and goes again: the delay begins anew
    duty(fence)
    back.membership.stop()
    duty(fence)
    clock.now_s += 59
    duty(fence)
    assert states(meta) == "active active active"
    clock.now_s += 1
    duty(fence)
    assert states(meta) == "active active draining"


def test_down_is_not_out_unless_somebody_said_so(meta: HookedMeta) -> None:
    clock, fence = Clock(), fence_of(meta)
    duty = absences(meta, clock, out_after_s=0.0)
    for _ in range(3):
        duty(fence)
        clock.now_s += 10**6
    assert states(meta) == "active active active"


def test_a_node_that_the_copies_need_is_not_drained_however_long_it_is_away(meta: HookedMeta) -> None:
    Buckets(meta).create("data", BucketPolicy(replicas=3))
    Member(meta, "b")
    clock, fence = Clock(), fence_of(meta)
    duty = absences(meta, clock, out_after_s=1.0)
    duty(fence)
    clock.now_s += 2
    duty(fence)
    assert states(meta) == "active active active"


# The job of a move


def rebalance(meta: HookedMeta, facts: Mapping[str, NodeFacts], clock: Clock) -> Rebalance:
    return Rebalance(meta, ask=lambda node_ids: facts, max_kept=2, wall_clock=clock)


def jobs(meta: HookedMeta) -> list[Job]:
    return sorted((job for job, _ in read_jobs(meta)), key=lambda job: job.started_s)


def test_a_change_of_the_layout_is_a_job_from_its_commit_to_its_retirement(meta: HookedMeta) -> None:
    clock, fence = Clock(), fence_of(meta)
    facts = {name: NodeFacts(up=True, held_bytes=6400, held_chunks=64) for name in "abc"}
    duty = rebalance(meta, facts, clock)
    duty(fence)
    assert jobs(meta) == []
    change(meta, *LAYOUT.nodes, Node(id="d"))
    duty(fence)
    (job,) = jobs(meta)
    assert (job.kind, job.node_id, job.state, job.num_chunks) == (REBALANCE, "cluster", "running", 0)
    assert job.total_chunks is not None and 20 < job.total_chunks < 80
    facts["d"] = NodeFacts(up=True, follows=2, fetched_chunks=10, fetched_bytes=1000)
    clock.now_s += 10
    hold(meta, "a", "b")
    duty(fence)
    (job,) = jobs(meta)
    assert (job.num_chunks, job.size_bytes) == (10, 1000)
    assert job.detail.startswith("layout 2: 2 of 4 nodes complete, about ") and "100 bytes/s" in job.detail
    # A node that begins anew, or says nothing, takes nothing back.
    facts["d"] = NodeFacts()
    duty(fence)
    assert jobs(meta)[0].num_chunks == 10
    hold(meta, "c", "d")
    Retirement(meta)(fence)
    duty(fence)
    (job,) = jobs(meta)
    assert (job.state, job.detail) == ("done", "layout 2: all nodes complete")


def test_the_job_of_a_layout_that_another_follows_ends_and_the_next_one_goes_on(meta: HookedMeta) -> None:
    clock, fence = Clock(), fence_of(meta)
    duty = rebalance(meta, {}, clock)
    for version, name in enumerate("defg", start=2):
        change(meta, *LAYOUT.nodes, Node(id=name))
        clock.now_s += 1
        duty(fence)
        assert [job.state for job in jobs(meta)][-2:] == ["cancelled", "running"][-min(2, version - 1) :]
    assert "layout 5 came before this one was complete" in jobs(meta)[-2].detail
    duty(fence)
    assert len(jobs(meta)) == 3  # two that ended are remembered


def test_the_next_coordinator_goes_on_with_the_job_and_the_former_one_writes_nothing(meta: HookedMeta, clock: Clock) -> None:
    change(meta, *LAYOUT.nodes, Node(id="d"))
    old = fence_of(meta)
    first = rebalance(meta, {"a": NodeFacts(follows=2, fetched_chunks=5)}, clock)
    first(old)
    clock.now_s += TTL_S + 1
    new = fence_of(meta, "b")
    rebalance(meta, {"a": NodeFacts(follows=2, fetched_chunks=7)}, clock)(new)
    before = jobs(meta)
    assert len(before) == 1 and before[0].num_chunks == 7
    rebalance(meta, {"a": NodeFacts(follows=2, fetched_chunks=99)}, clock)(old)
    assert jobs(meta) == before


def test_a_move_is_not_cancelled_and_says_what_to_do(meta: HookedMeta) -> None:
    change(meta, *LAYOUT.nodes, Node(id="d"))
    rebalance(meta, {}, Clock())(fence_of(meta))
    board = Jobs(meta, node_id="a", kinds={})
    board.resume()  # it is nobody's own job, so no node takes it for a leftover
    (job,) = board.ls()
    assert job.state == "running"
    with pytest.raises(InvalidRequest, match="make the reverse change"):
        board.cancel(job.id)
