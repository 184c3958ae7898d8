"""Levels of consistency on an engine whose nearest member is behind: which of them it may answer, and what then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from client.catalog import CONSISTENCY_LEVELS
from client.errors import BucketNotFound, MetadataUnavailable, ObjectNotFound, from_problem, to_problem
from client.record import BucketPolicy, ObjectInfo
from storenode.catalog import MetaCatalog
from storenode.incarnation import accept_restore
from storenode.lineage import create_cluster
from storenode.metastore import Local
from tests.support.asgi import call
from tests.support.catalogs import ANY, make_catalog, open_meta, put
from tests.support.hooked_meta import HookedMeta
from tests.support.nodes import open_node


class LaggingMeta(HookedMeta):
    """The nearest member stays at the state that it had at `lag`."""

    def lag(self) -> None:
        items = {item.key: item for item in self.meta.range("", chr(0x10FFFF), limit=1000).items}
        revision = self.meta.revision()

        def local(keys: Sequence[str]) -> Local:
            return Local(items=tuple(map(items.get, keys)), revision=revision)

        self.local = local


@pytest.fixture
def meta() -> Iterator[LaggingMeta]:
    with open_meta() as opened:
        create_cluster(opened)
        yield LaggingMeta(opened.meta)


@pytest.fixture
def catalog(meta: LaggingMeta) -> MetaCatalog:
    return make_catalog(meta)


def test_only_strong_needs_the_newest_state(catalog: MetaCatalog, meta: LaggingMeta) -> None:
    old = put(catalog)
    meta.lag()
    new = put(catalog)
    assert catalog.lookup("data", "k") == new
    assert catalog.lookup("data", "k", consistency="eventual") == old
    assert catalog.lookup("data", "k", consistency="session", seen=old.version) == old
    assert catalog.lookup("data", "k", consistency="session", seen=new.version) == new


def test_a_level_that_the_nearest_member_can_answer_asks_nobody_else(catalog: MetaCatalog, meta: LaggingMeta) -> None:
    info = put(catalog)
    meta.calls.clear()
    assert catalog.lookup("data", "k", consistency="eventual") == info
    assert catalog.lookup("data", "k", version=info.version, consistency="session", seen=info.version) == info
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "other", consistency="eventual")
    with pytest.raises(BucketNotFound):
        catalog.lookup("other", "k", consistency="session")
    assert meta.calls == {"get_local": 4}


def test_an_older_version_is_found_wherever_it_lies(catalog: MetaCatalog, meta: LaggingMeta) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=3))
    old, new = put(catalog), put(catalog)
    for consistency in CONSISTENCY_LEVELS:
        for info in (old, new):
            assert catalog.lookup("data", "k", version=info.version, consistency=consistency) == info
        with pytest.raises(ObjectNotFound, match="no version 1"):
            catalog.lookup("data", "k", version=1, consistency=consistency)


@pytest.mark.parametrize("consistency", ["strong", "session", "eventual"])
def test_what_is_not_there_tells_of_which_revision_that_is(catalog: MetaCatalog, meta: LaggingMeta, consistency: str) -> None:
    before = put(catalog, "other").version
    with pytest.raises(ObjectNotFound) as missing:
        catalog.lookup("data", "k", consistency=consistency)  # type: ignore[arg-type]
    assert missing.value.revision is not None and missing.value.revision >= before
    assert from_problem(to_problem(missing.value), node_id="n").revision == missing.value.revision


def test_a_delete_tells_its_version_so_that_a_session_does_not_see_what_it_deleted(
    catalog: MetaCatalog, meta: LaggingMeta
) -> None:
    info = put(catalog)
    meta.lag()
    seen = catalog.delete("data", "k", write_id="d", condition=ANY)
    assert catalog.lookup("data", "k", consistency="session", seen=info.version) == info
    with pytest.raises(ObjectNotFound):
        catalog.lookup("data", "k", consistency="session", seen=seen)


def test_sessions_outlive_the_incarnation(catalog: MetaCatalog, meta: LaggingMeta) -> None:
    old = put(catalog)
    meta.lag()
    accept_restore(meta)
    new = put(catalog)
    assert catalog.lookup("data", "k", consistency="session", seen=old.version) == old
    assert catalog.lookup("data", "k", consistency="session", seen=new.version) == new


def test_without_a_majority_only_reads_that_need_none_go_on(catalog: MetaCatalog, meta: LaggingMeta) -> None:
    old = put(catalog)
    meta.lag()
    new = put(catalog)

    def gone(*_: object, **__: object) -> None:
        raise MetadataUnavailable("no majority")

    meta.get = gone  # type: ignore[method-assign]
    for consistency, seen in (("strong", 0), ("session", new.version)):
        with pytest.raises(MetadataUnavailable):
            catalog.lookup("data", "k", consistency=consistency, seen=seen)  # type: ignore[arg-type]
    for consistency, seen in (("eventual", 0), ("session", old.version)):
        assert catalog.lookup("data", "k", consistency=consistency, seen=seen) == old  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/v1/records/data/k", "/v1/objects/data/k"])
def test_the_level_and_what_was_seen_reach_the_catalog_over_http(path: str) -> None:
    asked: list[dict[str, Any]] = []
    with open_node() as bed:
        bed.node.catalog.create_bucket("data", BucketPolicy(replicas=1))
        lookup = bed.node.catalog.lookup

        def noted(*name: str, **options: Any) -> ObjectInfo:
            asked.append(options)
            return lookup(*name, **options)

        bed.node.catalog.lookup = noted  # type: ignore[method-assign]
        answer = call(bed.app, "GET", path + "?consistency=session&seen=7")
        assert answer.status == 404 and answer.json()["revision"] >= 1
        assert call(bed.app, "GET", path + "?consistency=session&seen=x").status == 400
    assert asked == [{"version": None, "snapshot": None, "consistency": "session", "seen": 7}]
