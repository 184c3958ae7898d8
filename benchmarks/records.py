"""What the record of an object takes in etcd: ``make bench SUITE=records``.

For objects of one chunk, of eight chunks, and of many chunks in manifests, with keys of 40 characters: the bytes of key and
value, and what a real etcd's file and memory grow by for each, compacted and defragmented. The markers of writes are not
counted, since they go by themselves within minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.store.usage import resident_bytes
from client.checksum import content_digest
from client.manifest import Ref
from client.record import Content, ObjectRecord
from client.write_id import new_write_id
from storenode.history import Head
from storenode.keyspace import object_key
from storenode.metastore import Put
from tests.support.etcd import Etcd, running_etcd

RECORDS = 67_000
BATCH = 100
CHUNK_BYTES = 8 * 1024 * 1024
QUOTA_BYTES = 8 * 1024**3
DEFRAGMENT_S = 300.0


def reference() -> Ref:
    """Of a chunk with random bytes."""
    random = os.urandom(42)
    return Ref(
        partition=int.from_bytes(random[:2], "big"), id=random[2:34], size=CHUNK_BYTES, check=int.from_bytes(random[34:], "big")
    )


def contents() -> Mapping[str, Content]:
    """The content of an object of each kind."""
    one, eight = (tuple(reference() for _ in range(count)) for count in (1, 8))
    return {
        "1 chunk": Content(size=CHUNK_BYTES, digest=content_digest([ref.id for ref in one]), refs=one),
        "8 chunks": Content(size=8 * CHUNK_BYTES, digest=content_digest([ref.id for ref in eight]), refs=eight),
        "manifest": Content(size=2**40, digest=content_digest([ref.id for ref in one]), manifest=reference()),
    }


def records(kind: str) -> Iterator[Put]:
    """The puts of new records of one kind, each with names, hashes and ids of its own."""
    for number in range(RECORDS):
        record = ObjectRecord(
            write_id=new_write_id(), content=contents()[kind], ack="quorum", replicas=3, created_s=time.time()
        )
        key = object_key("datasets", f"run-{number // 1000:04d}/sample-{number:024d}")
        yield Put(key=key, value=Head(version=0, record=record, older=0).encode())


def sizes(etcd: Etcd) -> tuple[int, int]:
    """Bytes of the file of a member whose history was dropped, and of its memory."""
    status = etcd.ask("/v3/maintenance/status")
    etcd.compact(int(status["header"]["revision"]))
    etcd.ask("/v3/maintenance/defragment", timeout_s=DEFRAGMENT_S)
    process = etcd.members[0].process
    assert process is not None
    return int(etcd.ask("/v3/maintenance/status")["dbSize"]), resident_bytes([process.pid])


def measure(kind: str) -> tuple[str, ...]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory, running_etcd(Path(directory)) as etcd, etcd.store(etcd.address()) as store:
        empty_bytes, _ = sizes(etcd)
        key_bytes = value_bytes = 0
        batch: list[Put] = []
        for put in records(kind):
            key_bytes += len(put.key.encode())
            value_bytes += len(put.value)
            batch.append(put)
            if len(batch) == BATCH:
                store.txn([], batch)
                batch = []
        file_bytes, memory_bytes = sizes(etcd)
    each = (file_bytes - empty_bytes) / RECORDS
    return (
        kind,
        f"{key_bytes / RECORDS:.0f}",
        f"{value_bytes / RECORDS:.0f}",
        f"{each:.0f}",
        f"{memory_bytes / RECORDS:.0f}",
        f"{QUOTA_BYTES / each / 1e6:.1f}",
        f"{1e8 * each / 1e9:.0f}",
    )


def main() -> None:
    """Measure all kinds."""
    names = ("object of", "key, B", "value, B", "in the file, B", "in memory, B", "millions in 8 GiB", "10^8 of them, GB")
    table = Table(*names)
    for kind in contents():
        table.add_row(*measure(kind))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
