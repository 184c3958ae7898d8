"""Pages and changes come back from their JSON, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.catalog import Listing, Watched
from client.errors import MetadataCorrupt
from client.record import ObjectInfo
from tests.golden.contract import RECORDS

INFO = ObjectInfo(bucket="data", key="a/ключ", version=7, record=RECORDS[0])
PAGE = Listing(objects=(INFO,), prefixes=("b/",), cursor="opaque", revision=9)
CHANGES = Watched(changes=(("a", INFO), ("gone", None)), revision=12)


def test_pages_come_back() -> None:
    assert Listing.from_json(json.loads(json.dumps(PAGE.to_json()))) == PAGE


def test_changes_come_back() -> None:
    assert Watched.from_json(json.loads(json.dumps(CHANGES.to_json()))) == CHANGES


@pytest.mark.parametrize("value", [None, [], {}, {**PAGE.to_json(), "objects": [5]}, {**PAGE.to_json(), "revision": "x"}])
def test_a_damaged_page_is_metadata_corrupt(value: Any) -> None:
    with pytest.raises(MetadataCorrupt):
        Listing.from_json(value)


@pytest.mark.parametrize("value", [None, [], {}, {"changes": [["a"]], "revision": 1}, {"changes": 5, "revision": 1}])
def test_damaged_changes_are_metadata_corrupt(value: Any) -> None:
    with pytest.raises(MetadataCorrupt):
        Watched.from_json(value)
