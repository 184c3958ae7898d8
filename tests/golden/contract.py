"""The pinned answers of what client and node share: placement, references, manifests, records.

``python -m tests.golden.contract`` writes the files anew. They change with the formats only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from client.manifest import Entry, Manifest, Ref, make_ref
from client.placement import Layout, Node, choose_groups, partition_of
from client.record import Content, ObjectRecord

FOLDER = Path(__file__).parent

KEYS = (b"", b"forebay", bytes(range(32)), "Gruppe/7.ä".encode())
LAYOUT = Layout(
    version=3,
    partitions=4096,
    nodes=(
        Node(id="5f0c", weight=1.0, zone="east", host="h1"),
        Node(id="77aa", weight=1.0, zone="east", host="h1"),
        Node(id="9be2", weight=2.0, zone="east", host="h2"),
        Node(id="c31d", weight=1.0, zone="west", host="h3"),
        Node(id="e004", weight=0.5, zone="west", host="h4"),
    ),
)
PAYLOADS = (b"", b"a", bytes(range(256)) * 300)
DATA = (
    Ref(partition=0, id=bytes(32), size=0, check=0),
    Ref(partition=65_535, id=bytes(range(32)), size=8 * 1024 * 1024, check=2**64 - 1),
    Ref(partition=0x01020304, id=bytes(range(32, 64)), size=2**32 - 1, check=0x0102030405060708),
)
LEAF = Manifest(level=0, entries=tuple(Entry(ref=ref, content_bytes=ref.size) for ref in DATA))
ROOT = Manifest(
    level=1,
    entries=(
        Entry(ref=make_ref(LEAF.encode(), partitions=65_536), content_bytes=LEAF.content_bytes),
        Entry(ref=make_ref(LEAF.encode(), partitions=65_536, group="g"), content_bytes=2**53),
    ),
)
RECORDS = (
    ObjectRecord(
        write_id="0123456789abcdef0123456789abcdef",
        content=Content(size=DATA[1].size, digest="ab" * 32, refs=DATA[:2]),
        content_type="text/plain",
        metadata={"owner": "Zoë", "run": "7"},
        ack="all",
        replicas=2,
        created_s=1_700_000_000.25,
    ),
    ObjectRecord(write_id="w-1", content=Content(size=2**40, digest="cd" * 32, manifest=DATA[2])),
    ObjectRecord(write_id="w_2", content=Content(size=0, digest=""), tombstone=True),
)


def placement_vectors() -> dict[str, Any]:
    """What ``placement.json`` holds."""
    return {
        "partition_of": [
            {"key_hex": key.hex(), "partitions": partitions, "partition": partition_of(key, partitions=partitions)}
            for key in KEYS
            for partitions in (1, 256, 65_536)
        ],
        "layout": LAYOUT.to_json(),
        "replicas": [
            {"partition": partition, "count": count, "nodes": list(LAYOUT.replicas(partition, count=count))}
            for partition in (0, 1, 2, 3, 1000, 4095)
            for count in (1, 2, 3, 5)
        ],
        "groups": {"name": "w", "replicas": 3, "groups": list(choose_groups(LAYOUT, name="w", num_groups=8, replicas=3))},
    }


def manifest_vectors() -> dict[str, Any]:
    """What ``manifest.json`` holds."""
    return {
        "references_of": [
            {
                "payload_hex": payload.hex(),
                "group": group,
                "packed_hex": make_ref(payload, partitions=4096, group=group).pack().hex(),
            }
            for payload in PAYLOADS
            for group in (None, "lane-7")
        ],
        "references": [
            {
                "partition": r.partition,
                "id_hex": r.hex,
                "size": r.size,
                "check": f"{r.check:016x}",
                "packed_hex": r.pack().hex(),
            }
            for r in DATA
        ],
        "leaf_hex": LEAF.encode().hex(),
        "root_hex": ROOT.encode().hex(),
    }


def record_vectors() -> list[dict[str, Any]]:
    """What ``record.json`` holds."""
    return [record.to_json() for record in RECORDS]


def write(folder: Path) -> None:
    """Write all files into `folder`."""
    made = {"placement": placement_vectors(), "manifest": manifest_vectors(), "record": record_vectors()}
    for name, vectors in made.items():
        (folder / f"{name}.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    write(FOLDER)
