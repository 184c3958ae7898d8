"""The catalog against a dictionary: any sequence of writes, repeats and policies, and any listing of what they leave."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from client.catalog import Commit, Listing
from client.errors import BucketNotEmpty, ObjectNotFound, PreconditionFailed
from client.record import BucketPolicy, Condition, ObjectInfo
from storenode.catalog import MetaCatalog
from tests.support.catalogs import ANY, make_catalog, open_meta, put, record, write

# Few characters, so that keys share prefixes: the delimiter, its neighbours in byte order, and wide ones.
NAMES = st.lists(st.text("ab!0é\U0001f600", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)
# Drawn from a few, so that objects have versions.
WRITES = st.lists(NAMES, min_size=1, max_size=12).flatmap(lambda names: st.lists(st.sampled_from(names), max_size=25))
KEYS = st.sampled_from(["a", "a/b", "b"])
PREFIXES = st.one_of(st.just(""), NAMES, NAMES.map(lambda name: name + "/"))


def whole_listing(
    catalog: MetaCatalog, *, prefix: str, delimiter: str, limit: int, versions: bool
) -> tuple[list[tuple[str, int]], list[str]]:
    """All pages joined; each is checked to be in bounds and of one revision."""
    objects, prefixes, revisions, cursor = list[tuple[str, int]](), list[str](), set[int](), None
    while True:
        page: Listing = catalog.list("data", prefix=prefix, delimiter=delimiter, cursor=cursor, limit=limit, versions=versions)
        assert len(page.objects) + len(page.prefixes) <= limit
        objects += [(info.key, info.version) for info in page.objects]
        prefixes += page.prefixes
        revisions.add(page.revision)
        cursor = page.cursor
        if cursor is None:
            break
    assert len(revisions) == 1
    return objects, prefixes


def expected_listing(
    histories: dict[str, list[ObjectInfo]], *, prefix: str, delimiter: str, versions: bool
) -> tuple[list[tuple[str, int]], list[str]]:
    """What a listing of `histories` (newest first) has to show, by definition."""
    objects, prefixes = list[tuple[str, int]](), list[str]()
    for key in sorted(histories, key=str.encode):
        history = histories[key]
        if not key.startswith(prefix) or (history[0].record.tombstone and not versions):
            continue
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        folded = prefix + head + delimiter
        if not found:
            objects += [(info.key, info.version) for info in (history if versions else history[:1])]
        elif folded not in prefixes:
            prefixes.append(folded)
    return objects, prefixes


@given(
    names=WRITES,
    deleted=st.sets(st.integers(0, 24)),
    prefix=PREFIXES,
    delimiter=st.sampled_from(["", "/", "a", "!", "b/"]),
    limit=st.integers(1, 8),
    versions=st.booleans(),
)
def test_pages_of_any_listing_join_up_to_what_it_is_by_definition(
    names: list[str], deleted: set[int], prefix: str, delimiter: str, limit: int, versions: bool
) -> None:
    histories: dict[str, list[ObjectInfo]] = {}
    with open_meta() as meta:
        catalog = make_catalog(meta)
        catalog.set_bucket("data", BucketPolicy(versions=10_000))
        for number, name in enumerate(names):
            histories.setdefault(name, []).insert(0, put(catalog, name))
            if number in deleted:
                catalog.delete("data", name, write_id=f"d{number}", condition=ANY)
                tombstone = ObjectInfo(bucket="data", key=name, version=meta.revision(), record=record(tombstone=True))
                histories[name].insert(0, tombstone)
        expected = expected_listing(histories, prefix=prefix, delimiter=delimiter, versions=versions)
        assert whole_listing(catalog, prefix=prefix, delimiter=delimiter, limit=limit, versions=versions) == expected


class CatalogMachine(RuleBasedStateMachine):
    """Writes and repeats against a model that keeps everything in lists, newest first."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.meta = self._stack.enter_context(open_meta())
        # A second node on the same metadata: a repeat goes through either.
        self.catalogs = [make_catalog(self.meta), make_catalog(self.meta)]
        self.catalog = self.catalogs[0]
        self.keep = 0
        self.histories: dict[str, list[ObjectInfo]] = {}
        self.outcomes: dict[str, tuple[str, Condition, ObjectInfo | type[Exception]]] = {}
        self.ids = (f"w{number}" for number in count())

    def teardown(self) -> None:
        self._stack.close()

    def etag(self, key: str) -> str | None:
        history = self.histories.get(key)
        return None if not history or history[0].record.tombstone else history[0].etag

    def remember(self, key: str, info: ObjectInfo | None) -> None:
        history = self.histories.pop(key, [])
        kept = ([info] if info is not None else []) + (history if self.keep else history[1:])
        # What a lowered policy gives up goes with the next write; so few are never too many for one.
        kept = kept[: self.keep + 1]
        if kept and not (kept[0].record.tombstone and self.keep == 0):
            self.histories[key] = kept

    @rule(key=KEYS, ask=st.sampled_from(["any", "new", "exists", "same", "stale"]))
    def commit(self, key: str, ask: str) -> None:
        write_id, condition = next(self.ids), self.condition(key, ask)
        outcome: ObjectInfo | type[Exception]
        if condition.holds(self.etag(key)):
            outcome = put(self.catalog, key, write_id=write_id, condition=condition)
            self.remember(key, outcome)
        else:
            outcome = PreconditionFailed
            with pytest.raises(PreconditionFailed):
                put(self.catalog, key, write_id=write_id, condition=condition)
        self.outcomes[write_id] = (key, condition, outcome)

    @rule(data=st.data(), num_writes=st.integers(0, 5))
    def commit_many(self, data: st.DataObject, num_writes: int) -> None:
        """Any mix of new writes and repeats, several to one key, is what committing one after another makes of it."""
        writes, expected = list[Commit](), list[ObjectInfo | type[Exception]]()
        for _ in range(num_writes):
            repeats: bool = data.draw(st.booleans())
            if repeats and self.outcomes:
                write_id = data.draw(st.sampled_from(sorted(self.outcomes)))
                key, condition, outcome = self.outcomes[write_id]
            else:
                write_id, key = next(self.ids), data.draw(KEYS)
                condition = self.condition(key, data.draw(st.sampled_from(["any", "new", "exists", "same", "stale"])))
                outcome = self.foreseen(key, write_id, condition)
                self.outcomes[write_id] = (key, condition, outcome)
            writes.append(write(key, write_id=write_id, condition=condition))
            expected.append(outcome)
        found = self.catalog.commit_many(writes)
        assert [self.shown(outcome) for outcome in found] == [self.shown(outcome) for outcome in expected]
        # Only now are the versions known.
        for info in (outcome for outcome in found if isinstance(outcome, ObjectInfo)):
            key, condition, _ = self.outcomes[info.etag]
            self.outcomes[info.etag] = (key, condition, info)
            history = self.histories.get(key, [])
            history[:] = [info if older.etag == info.etag else older for older in history]

    def foreseen(self, key: str, write_id: str, condition: Condition) -> ObjectInfo | type[Exception]:
        """The outcome of a new write, with a version that is not known yet, remembered as if it had happened."""
        if not condition.holds(self.etag(key)):
            return PreconditionFailed
        info = ObjectInfo(bucket="data", key=key, version=0, record=record(write_id=write_id))
        self.remember(key, info)
        return info

    @staticmethod
    def shown(outcome: ObjectInfo | Exception | type[Exception]) -> object:
        """An outcome without its version."""
        if isinstance(outcome, ObjectInfo):
            return outcome.key, outcome.record
        return outcome if isinstance(outcome, type) else type(outcome)

    @rule(key=KEYS, ask=st.sampled_from(["any", "exists", "same", "stale"]))
    def delete(self, key: str, ask: str) -> None:
        write_id, condition = next(self.ids), self.condition(key, ask)
        etag = self.etag(key)
        if condition.holds(etag) and etag is not None:
            self.catalog.delete("data", key, write_id=write_id, condition=condition)
            tombstone = ObjectInfo(
                bucket="data", key=key, version=self.meta.revision(), record=record(write_id=write_id, tombstone=True)
            )
            self.remember(key, tombstone)
            return
        with pytest.raises((PreconditionFailed, ObjectNotFound)):
            self.catalog.delete("data", key, write_id=write_id, condition=condition)

    def condition(self, key: str, ask: str) -> Condition:
        return {
            "any": ANY,
            "new": Condition(if_none_match="*"),
            "exists": Condition(if_match="*"),
            "same": Condition(if_match=self.etag(key) or "none"),
            "stale": Condition(if_match="stale"),
        }[ask]

    @precondition(lambda self: self.outcomes)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        write_id = data.draw(st.sampled_from(sorted(self.outcomes)))
        catalog = data.draw(st.sampled_from(self.catalogs))
        key, condition, outcome = self.outcomes[write_id]
        if isinstance(outcome, ObjectInfo):
            assert put(catalog, key, write_id=write_id, condition=condition) == outcome
        else:
            with pytest.raises(outcome):
                put(catalog, key, write_id=write_id, condition=condition)

    @rule(keep=st.integers(0, 3))
    def set_policy(self, keep: int) -> None:
        self.catalog.set_bucket("data", BucketPolicy(versions=keep))
        self.keep = keep

    @rule()
    def delete_bucket(self) -> None:
        alive = [key for key in self.histories if self.etag(key) is not None]
        if alive or (self.keep and self.histories):
            with pytest.raises(BucketNotEmpty):
                self.catalog.delete_bucket("data")
            return
        self.catalog.delete_bucket("data")
        self.histories.clear()
        self.catalog.create_bucket("data", BucketPolicy(versions=self.keep))

    @invariant()
    def listing_and_lookups_agree_with_the_model(self) -> None:
        shown = whole_listing(self.catalog, prefix="", delimiter="", limit=3, versions=True)
        assert shown == expected_listing(self.histories, prefix="", delimiter="", versions=True)
        for key, history in self.histories.items():
            for info in history:
                if not info.record.tombstone:
                    assert self.catalog.lookup("data", key, version=info.version) == info
            if self.etag(key) is not None:
                assert self.catalog.lookup("data", key) == history[0] == self.catalog.lookup_now("data", key)
        keys = ["a", "a/b", "b"]
        found = self.catalog.lookup_many([("data", key) for key in keys])
        assert [None if isinstance(info, ObjectNotFound) else info for info in found] == [
            self.histories[key][0] if self.etag(key) is not None else None for key in keys
        ]


CatalogMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
TestCatalogMachine = CatalogMachine.TestCase
