"""How ranks agree on lanes: all of them on one order, by whatever way they come to it, and what is left in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.catalog import Watched
from client.errors import Busy, CursorExpired, Forbidden, StoreError
from client.record import BucketPolicy, Condition
from loader.agreement import KEPT_EPOCHS, KEPT_S, LaneAgreement, holders_of_lanes
from loader.errors import LanesNotAgreed
from loader.placed import num_local
from loader.reader import DatasetReader
from loader.state import LoaderState
from loader.writer import ShardWriter
from tests.support.fake_store import FakeStore
from tests.support.near_store import NearStore

LANES, RANKS = 16, 4
HOSTS = [f"host-node-{number}" for number in range(1, RANKS + 1)]


@pytest.fixture
def shared() -> Iterator[FakeStore]:
    store = FakeStore(num_nodes=RANKS)
    store.fake_catalog.create_bucket("data", BucketPolicy(replicas=2, ack="all"))
    with ShardWriter("forebay://data/set", {"row": "int64"}, "none", 4096, num_lanes=LANES, client=store) as writer:
        writer.write_batch({"row": np.arange(1000)})
    yield store
    store.close()


class Rank:
    """One rank, on the host of its number unless told otherwise."""

    def __init__(self, shared: FakeStore, rank: int, *, host: int | None = None, **options: Any) -> None:
        self.store = NearStore(shared, host=HOSTS[rank if host is None else host])
        self.reader = DatasetReader(self.store, "data", "set")
        settings: dict[str, Any] = {"run_id": "run-1", "rank": rank, "world_size": RANKS, "timeout_s": 20.0, **options}
        self.agreement = LaneAgreement(**settings)

    def order(self, epoch: int = 0) -> tuple[int, ...]:
        return self.agreement.order(self.store, self.reader, epoch=epoch)

    def name(self, epoch: int = 0) -> str:
        return self.agreement.name(self.store, self.reader, epoch=epoch)


@contextmanager
def ranks_of(shared: FakeStore, **options: Any) -> Iterator[list[Rank]]:
    with ExitStack() as stack:
        ranks = [Rank(shared, rank, **options) for rank in range(RANKS)]
        for rank in ranks:
            stack.callback(rank.store.close)
        yield ranks


def at_once(calls: list[Callable[[], tuple[int, ...]]]) -> list[tuple[int, ...]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=30) for future in [pool.submit(call) for call in calls]]


def kept(shared: FakeStore) -> list[str]:
    """The names of what is below the dataset's key, without the run and the digest."""
    return sorted(key.rpartition("/")[2] for _, key in shared.fake_catalog.history if key.startswith("set.lanes/"))


def state_of(ranks: list[Rank], *, epoch: int) -> LoaderState:
    return LoaderState(
        dataset_digest=ranks[0].reader.index.digest,
        dataset_version=1,
        seed=0,
        epoch=epoch,
        samples_consumed=64,
        shuffle=True,
        lane_map=ranks[0].name(epoch),
    )


def test_all_ranks_get_one_order_that_brings_lanes_to_their_hosts(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        orders = at_once([rank.order for rank in ranks])
        assert len(set(orders)) == 1
        assert len({rank.name() for rank in ranks}) == 1
        holders = holders_of_lanes(ranks[0].reader, ranks[0].store)
        assert all(len(hosts) == 2 for hosts in holders)
        assert num_local(orders[0], holders, hosts=HOSTS) == LANES
        # In their usual order they are not at hand, so that the test says something.
        assert num_local(range(LANES), holders, hosts=HOSTS) < LANES
        assert kept(shared) == ["epoch-0", "hosts"]


def test_later_epochs_wait_for_nobody(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        first = at_once([rank.order for rank in ranks])
        assert ranks[2].order(1) == first[0]
        assert [rank.order(1) for rank in ranks] == [first[0]] * RANKS


def test_who_pins_first_decides_also_for_those_who_see_another_layout(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        at_once([rank.order for rank in ranks])
        layout = shared.cluster.layout
        moved = tuple(replace(node, host=other.host) for node, other in zip(layout.nodes, reversed(layout.nodes), strict=True))
        pinned = ranks[0].order(1)
        object.__setattr__(layout, "nodes", moved)
        assert ranks[1].order(1) == pinned
        assert ranks[1].order(2) != pinned


def test_another_process_of_a_rank_needs_no_other_rank(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        orders = at_once([rank.order for rank in ranks])
        for rank in (0, 3):
            worker = Rank(shared, rank)
            assert worker.order() == orders[0]
            assert worker.order(1) == orders[0]
            worker.store.close()


def test_ranks_that_were_started_again_elsewhere_are_at_hand_from_the_next_epoch_on(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        (before,) = set(at_once([rank.order for rank in ranks]))
    with ExitStack() as stack:
        again = [Rank(shared, rank, host=RANKS - 1 - rank) for rank in range(RANKS)]
        for rank in again:
            stack.callback(rank.store.close)
        assert set(at_once([rank.order for rank in again])) == {before}
        (order,) = set(at_once([lambda rank=rank: rank.order(1) for rank in again]))  # type: ignore[misc]
        assert num_local(order, holders_of_lanes(again[0].reader, again[0].store), hosts=HOSTS[::-1]) == LANES


def test_a_rank_trusts_no_memory_of_what_others_agree_on_once_more(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        at_once([rank.order for rank in ranks])
        folder = f"set.lanes/run-1/{ranks[0].reader.index.digest[:16]}-{RANKS}"
        shared.delete("data", f"{folder}/epoch-0")
        shared.put("data", f"{folder}/epoch-0", json.dumps([*range(LANES)][::-1]).encode())
        assert {rank.order() for rank in ranks} == {tuple(range(LANES))[::-1]}
        assert len({rank.name() for rank in ranks}) == 1


def test_ranks_that_do_not_come_are_named(shared: FakeStore) -> None:
    with ranks_of(shared, timeout_s=0.2) as ranks:
        with pytest.raises(LanesNotAgreed, match=r"rank 0 did not say within 0\.2 s .* run run-1"):
            ranks[2].order()
        with pytest.raises(LanesNotAgreed, match="ranks 1, 3 of 4 did not begin to read forebay://data/set within"):
            ranks[0].order()


def test_ranks_that_may_not_wait_look_again(shared: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, refused = shared.fake_catalog.watch, list[StoreError]()

    def crowded(bucket: str, *, after: int | None, **options: Any) -> Watched:
        if after is not None and len(refused) < 6:
            refused.append(Busy("too many wait") if len(refused) % 2 else CursorExpired("too long ago"))
            raise refused[-1]
        return watch(bucket, after=after, **options)

    monkeypatch.setattr(shared.fake_catalog, "watch", crowded)
    with ranks_of(shared) as ranks:
        assert len(set(at_once([rank.order for rank in ranks]))) == 1
    assert refused


def test_what_is_no_order_of_these_lanes_is_refused(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks:
        at_once([rank.order for rank in ranks])
        folder = f"set.lanes/run-1/{ranks[0].reader.index.digest[:16]}-{RANKS}"
        shared.put("data", f"{folder}/epoch-1", b"[0, 1, 2]")
        with pytest.raises(LanesNotAgreed, match="epoch-1 is an order of 16 lanes, found"):
            ranks[0].order(1)
        shared.put("data", f"{folder}/hosts", b'["a"]')
        with pytest.raises(LanesNotAgreed, match="hosts names the hosts of 4 ranks, found"):
            ranks[0].order(2)


def test_a_run_that_goes_on_takes_up_the_order_of_the_state(shared: FakeStore) -> None:
    with ranks_of(shared) as before:
        at_once([rank.order for rank in before])
        state = state_of(before, epoch=0)
        old = before[0].order()
    # The ranks come back on other hosts, where they would choose another order.
    with ExitStack() as stack:
        ranks = [Rank(shared, rank, host=RANKS - 1 - rank, run_id="run-2") for rank in range(RANKS)]
        for rank in ranks:
            stack.callback(rank.store.close)
            rank.agreement.resume(state)
        assert set(at_once([rank.order for rank in ranks])) == {old}
        (anew,) = set(at_once([lambda rank=rank: rank.order(1) for rank in ranks]))  # type: ignore[misc]
        holders = holders_of_lanes(ranks[0].reader, ranks[0].store)
        assert anew != old
        assert num_local(anew, holders, hosts=HOSTS[::-1]) == LANES


def test_an_order_that_is_gone_or_of_other_ranks_is_agreed_anew(shared: FakeStore, caplog: pytest.LogCaptureFixture) -> None:
    with ranks_of(shared) as before:
        at_once([rank.order for rank in before])
        state = state_of(before, epoch=0)
        shared.delete("data", f"set.lanes/run-1/{before[0].reader.index.digest[:16]}-{RANKS}/epoch-0")
    for name, said in ((state.lane_map, True), (state.lane_map.replace(":4:", ":8:"), False), ("rotate", False)):
        caplog.clear()
        with ranks_of(shared, run_id=f"run-{name[-3:]}-{said}") as ranks:
            for rank in ranks:
                rank.agreement.resume(replace(state, lane_map=name))
            assert len(set(at_once([rank.order for rank in ranks]))) == 1
        assert ("divided anew" in caplog.text) is said


def test_only_the_last_epochs_are_kept_and_long_gone_runs_are_not(shared: FakeStore) -> None:
    with ranks_of(shared) as ranks, ranks_of(shared, run_id="later") as later:
        at_once([rank.order for rank in ranks])
        for epoch in range(1, KEPT_EPOCHS + 3):
            ranks[epoch % RANKS].order(epoch)
        assert kept(shared) == sorted(["hosts", *(f"epoch-{epoch}" for epoch in range(2, KEPT_EPOCHS + 3))])
        age_all(shared, KEPT_S - 60)
        at_once([rank.order for rank in later])
        assert kept(shared).count("hosts") == 2
        age_all(shared, 120)
        later[0].order(1)
        assert kept(shared) == ["epoch-0", "epoch-1", "hosts"]


def age_all(shared: FakeStore, seconds: float) -> None:
    for name, infos in shared.fake_catalog.history.items():
        aged = [replace(info, record=replace(info.record, created_s=info.record.created_s - seconds)) for info in infos]
        shared.fake_catalog.history[name] = aged


def test_who_may_not_delete_leaves_what_is_old_and_says_so(
    shared: FakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(bucket: str, key: str, *, write_id: str, condition: Condition) -> int:
        raise Forbidden(f"may not delete {key}")

    monkeypatch.setattr(shared.fake_catalog, "delete", refuse)
    with ranks_of(shared) as ranks:
        assert len(set(at_once([rank.order for rank in ranks]))) == 1
    assert "may not delete set.lanes/run-1/" in caplog.text
    assert len([name for name in kept(shared) if name.startswith("rank-")]) == RANKS
