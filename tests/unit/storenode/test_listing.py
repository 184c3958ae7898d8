"""Pages of a listing: order, prefixes, cursors, one revision, bounded work."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.catalog import Commit, Listing
from client.errors import CursorExpired, InvalidName, InvalidRequest
from client.record import BucketPolicy
from storenode import listing
from storenode.catalog import MetaCatalog
from storenode.sqlite import SqliteMetaStore
from tests.support.catalogs import ANY, make_catalog, open_meta, put, record
from tests.support.hooked_meta import HookedMeta


@pytest.fixture
def meta() -> Iterator[HookedMeta]:
    with open_meta() as opened:
        yield opened


@pytest.fixture
def catalog(meta: HookedMeta) -> MetaCatalog:
    return make_catalog(meta)


def page(
    catalog: MetaCatalog,
    *,
    prefix: str = "",
    delimiter: str = "",
    cursor: str | None = None,
    limit: int = 1000,
    versions: bool = False,
) -> Listing:
    return catalog.list("data", prefix=prefix, delimiter=delimiter, cursor=cursor, limit=limit, versions=versions)


def keys(found: Listing) -> list[str]:
    return [info.key for info in found.objects]


def test_keys_come_in_the_order_of_their_bytes(catalog: MetaCatalog) -> None:
    names = ["a", "a!", "a/b", "a0", "b", "é", "\ue000", "\U0001f600", "A"]
    for name in names:
        put(catalog, name)
    assert keys(page(catalog)) == sorted(names, key=str.encode)


def test_pages_join_up_to_the_whole_listing(catalog: MetaCatalog) -> None:
    names = sorted(f"k{number}" for number in range(23))
    for name in names:
        put(catalog, name)
    found, cursor, num_pages = list[str](), None, 0
    while True:
        part = page(catalog, cursor=cursor, limit=5)
        found, cursor, num_pages = found + keys(part), part.cursor, num_pages + 1
        if cursor is None:
            break
    assert (found, num_pages) == (names, 5)


def test_last_page_says_so_even_when_it_is_full(catalog: MetaCatalog) -> None:
    for name in "abcd":
        put(catalog, name)
    assert page(catalog, limit=4).cursor is None


def test_all_pages_show_the_revision_of_the_first(catalog: MetaCatalog) -> None:
    for name in "abc":
        put(catalog, name)
    first = page(catalog, limit=1)
    put(catalog, "bb")
    catalog.delete("data", "c", write_id="w", condition=ANY)
    second = page(catalog, cursor=first.cursor)
    assert keys(second) == ["b", "c"]
    assert second.revision == first.revision
    assert keys(page(catalog)) == ["a", "b", "bb"]


def test_delimiter_folds_keys_into_prefixes(catalog: MetaCatalog) -> None:
    for name in ("a", "b/1", "b/2", "b/c/3", "b0", "c/y/x", "d"):
        put(catalog, name)
    found = page(catalog, delimiter="/")
    assert (keys(found), found.prefixes) == (["a", "b0", "d"], ("b/", "c/"))
    found = page(catalog, delimiter="/", prefix="b/")
    assert (keys(found), found.prefixes) == (["b/1", "b/2"], ("b/c/",))
    found = page(catalog, delimiter="/", prefix="b")
    assert (keys(found), found.prefixes) == (["b0"], ("b/",))


def test_prefixes_count_for_the_limit_and_pages_go_on_behind_them(catalog: MetaCatalog) -> None:
    for name in ("a/1", "a/2", "b", "c/1", "d"):
        put(catalog, name)
    found, cursor = list[tuple[str, ...]](), None
    while True:
        part = page(catalog, delimiter="/", limit=1, cursor=cursor)
        found.append((*keys(part), *part.prefixes))
        cursor = part.cursor
        if cursor is None:
            break
    assert found == [("a/",), ("b",), ("c/",), ("d",)]


def test_folding_costs_reads_by_prefix_and_not_by_key(catalog: MetaCatalog, meta: HookedMeta) -> None:
    for folder in range(3):
        for number in range(700):
            put(catalog, f"f{folder}/{number:04}")
    meta.calls.clear()
    assert page(catalog, delimiter="/").prefixes == ("f0/", "f1/", "f2/")
    assert meta.calls["range"] <= 4


def test_tombstones_are_hidden_and_so_are_prefixes_of_nothing_else(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=3))
    for name in ("a/1", "a/2", "b/1", "c"):
        put(catalog, name)
    for name in ("a/1", "a/2", "c"):
        catalog.delete("data", name, write_id=f"w-{name[0]}-{name[-1]}", condition=ANY)
    assert page(catalog, delimiter="/").prefixes == ("b/",)
    assert keys(page(catalog)) == ["b/1"]
    assert page(catalog, delimiter="/", versions=True).prefixes == ("a/", "b/")


def test_versions_come_newest_first_and_pages_may_break_between_them(catalog: MetaCatalog) -> None:
    catalog.set_bucket("data", BucketPolicy(versions=10))
    expected = []
    for name, count in (("a", 3), ("b", 1), ("c", 4)):
        infos = [put(catalog, name) for _ in range(count)]
        expected += [(name, info.version) for info in reversed(infos)]
    for limit in range(1, 9):
        found, cursor = list[tuple[str, int]](), None
        while True:
            part = page(catalog, versions=True, limit=limit, cursor=cursor)
            assert len(part.objects) == min(limit, len(expected) - len(found))
            found += [(info.key, info.version) for info in part.objects]
            cursor = part.cursor
            if cursor is None:
                break
        assert found == expected


def test_a_page_looks_at_a_bounded_number_of_keys(catalog: MetaCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_LOOKED_AT", 10)
    catalog.set_bucket("data", BucketPolicy(versions=1))
    for number in range(25):
        put(catalog, f"a{number:02}")
        catalog.delete("data", f"a{number:02}", write_id=f"w{number}", condition=ANY)
    last = put(catalog, "b")
    found, num_pages, part = list[object](), 1, page(catalog)
    while part.cursor is not None:
        found += part.objects
        part, num_pages = page(catalog, cursor=part.cursor), num_pages + 1
    assert (found, list(part.objects), num_pages) == ([], [last], 3)


def test_empty_bucket_has_an_empty_page(catalog: MetaCatalog, meta: HookedMeta) -> None:
    found = page(catalog)
    assert (found.objects, found.prefixes, found.cursor) == ((), (), None)
    assert found.revision == meta.revision()


def test_other_buckets_do_not_show(catalog: MetaCatalog) -> None:
    for name in ("dat", "data2", "data.x"):
        catalog.create_bucket(name, BucketPolicy())
        catalog.commit(Commit(bucket=name, key="theirs", record=record()))
    put(catalog, "mine")
    assert keys(page(catalog)) == ["mine"]


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


FORGED = [
    [],
    ["f", 1, "k", None],
    ["f", 0, "k", None, ""],
    ["f", -1, "k", None, ""],
    ["f", "1", "k", None, ""],
    ["f", 1, 3, None, ""],
    ["f", 1, "k", "x", ""],
]


@pytest.mark.parametrize("cursor", ["", "x", "ü", "%%%%", encoded(7), encoded(["f", True, "k", 1, ""]), *map(encoded, FORGED)])
def test_cursors_of_nobody_are_refused(catalog: MetaCatalog, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="none of ours"):
        page(catalog, cursor=cursor)


def test_cursor_of_another_listing_is_refused(catalog: MetaCatalog) -> None:
    for name in "abc":
        put(catalog, name)
    cursor = page(catalog, limit=1).cursor
    for other in ({"prefix": "b"}, {"delimiter": "/"}, {"versions": True}):
        with pytest.raises(InvalidRequest, match="another listing"):
            page(catalog, cursor=cursor, **other)


def test_cursor_that_was_tampered_with_stays_inside_its_listing(catalog: MetaCatalog) -> None:
    catalog.create_bucket("aaa", BucketPolicy())
    for name in ("a", "b/1", "b/2", "c"):
        put(catalog, name)
    fingerprint, revision, *_ = json.loads(base64.urlsafe_b64decode(page(catalog, prefix="b/", limit=1).cursor or ""))
    for key in ("", "a", "zzz"):
        shown = keys(page(catalog, prefix="b/", cursor=encoded([fingerprint, revision, key, None, ""])))
        assert shown == ([] if key == "zzz" else ["b/1", "b/2"])
    with pytest.raises(InvalidName):
        page(catalog, prefix="b/", cursor=encoded([fingerprint, revision, "b/\ud800", None, ""]))
    with pytest.raises(CursorExpired):
        page(catalog, prefix="b/", cursor=encoded([fingerprint, revision + 1000, "b/1", None, ""]))


def test_cursor_expires_with_its_revision(tmp_path: Path) -> None:
    store = SqliteMetaStore(tmp_path / "meta.db", history_revisions=10)
    catalog = make_catalog(HookedMeta(store))
    for name in "abc":
        put(catalog, name)
    cursor = page(catalog, limit=1).cursor
    for _ in range(50):
        put(catalog, "x")
    with pytest.raises(CursorExpired):
        page(catalog, cursor=cursor)
    store.close()


def test_control_characters_in_prefix_and_delimiter_are_refused(catalog: MetaCatalog) -> None:
    for options in ({"prefix": "a\x00"}, {"delimiter": "\n"}):
        with pytest.raises(InvalidName):
            page(catalog, **options)  # type: ignore[arg-type]
