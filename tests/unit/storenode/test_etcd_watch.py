"""What a watch makes of etcd's messages."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from storenode.etcd_watch import Gathering
from storenode.etcd_wire import Keyspace
from storenode.metastore import MAX_ANSWER_BYTES

AFTER = 10


def message(*events: tuple[str, int], piece: bool = False, value: bytes = b"v") -> dict[str, Any]:
    """Events of keys at revisions; the empty key is the mark."""
    return {
        "fragment": piece,
        "events": [
            {"kv": {"key": _text(f"p/{key}".encode()), "mod_revision": str(revision), "value": _text(value)}}
            for key, revision in events
        ],
    }


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def gathering(*, limit: int = 100) -> Gathering:
    return Gathering(Keyspace("p"), "b", "d", after=AFTER, limit=limit)


def keys(gathered: Gathering) -> list[tuple[str, int]]:
    return [(event.key, event.revision) for event in gathered.watched().events]


def test_only_events_of_the_range_after_the_revision_count() -> None:
    gathered = gathering()
    assert gathered.add(message(("b", 9), ("c", AFTER), ("a", 11), ("b", 11), ("d", 12)))
    assert keys(gathered) == [("b", 11)]
    assert gathered.watched().revision == 12


def test_what_is_not_of_the_range_moves_the_revision_along() -> None:
    gathered = gathering()
    assert not gathered.add(message(("", 20)))
    assert not gathered.add({})
    assert (keys(gathered), gathered.watched().revision) == ([], 20)


def test_a_piece_tells_of_the_revisions_before_its_last_one_only() -> None:
    gathered = gathering(limit=1)
    assert not gathered.add(message(("b", 11), ("c", 11), piece=True))
    assert (keys(gathered), gathered.watched().revision) == ([], AFTER)
    assert gathered.add(message(("ba", 11), ("b", 12), piece=True))
    assert (keys(gathered), gathered.watched().revision) == ([("b", 11), ("c", 11), ("ba", 11)], 11)


def test_pieces_are_put_together_while_there_is_room() -> None:
    gathered = gathering()
    assert not gathered.add(message(("b", 11), ("c", 12), piece=True))
    assert gathered.add(message(("b", 12), ("b", 13)))
    assert keys(gathered) == [("b", 11), ("c", 12), ("b", 12), ("b", 13)]


def test_a_limit_is_rounded_up_to_whole_revisions() -> None:
    for limit, expected in ((1, 11), (2, 12), (3, 12), (4, 13)):
        gathered = gathering(limit=limit)
        gathered.add(message(("b", 11), ("b", 12), ("c", 12), ("b", 13)))
        assert gathered.watched().revision == expected
        assert keys(gathered)[-1] == ("b" if expected != 12 else "c", expected)


def test_many_bytes_end_a_watch_between_revisions() -> None:
    gathered = gathering()
    quarter = bytes(MAX_ANSWER_BYTES // 4)
    assert not gathered.add(message(("b", 11), ("b", 12), ("b", 13), piece=True, value=quarter))
    assert gathered.add(message(("b", 14), ("b", 15), piece=True, value=quarter))
    assert [revision for _, revision in keys(gathered)] == [11, 12, 13, 14]
