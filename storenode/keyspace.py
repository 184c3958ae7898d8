r"""How names become keys of the metadata, and what order has to do with it.

    bucket/{bucket}                     a bucket's policy
    obj/{bucket}/{key}                  the newest version of an object, or its tombstone
    ver/{bucket}/{key}\0{version:020d}  an older version, moved aside by the write that replaced it
    write/{write_id}                    what became of a write, for its repeats (leased)

The layout, the nodes' leases and jobs lie beside these, under names of their own. A bucket's name holds no ``/`` and an
object's key no control character, so no name reaches into another's range. Keys are ordered by their UTF-8 bytes, which is
the order of their code points, and Python compares strings in that same order.
"""

from __future__ import annotations

from storenode.metastore import prefix_end

__all__ = [
    "BUCKETS",
    "after",
    "bucket_key",
    "is_object_key",
    "object_key",
    "objects_of",
    "version_key",
    "version_of",
    "versions_of",
    "write_key",
]

BUCKETS = "bucket/"
_END = "\x00"


def bucket_key(bucket: str) -> str:
    """Where a bucket's policy lies."""
    return BUCKETS + bucket


def objects_of(bucket: str) -> str:
    """What the keys of all newest versions in a bucket begin with."""
    return f"obj/{bucket}/"


def object_key(bucket: str, key: str) -> str:
    """Where the newest version of an object lies."""
    return objects_of(bucket) + key


def is_object_key(key: str) -> bool:
    """Whether the newest version of an object lies there."""
    return key.startswith("obj/")


def version_key(bucket: str, key: str, version: int) -> str:
    """Where an older version of an object lies; the digits make them sort by age."""
    return f"ver/{bucket}/{key}{_END}{version:020d}"


def versions_of(bucket: str, key: str) -> tuple[str, str]:
    """Start and end of the range that holds all older versions of an object, oldest first."""
    prefix = f"ver/{bucket}/{key}{_END}"
    return prefix, prefix_end(prefix)


def version_of(key: str) -> int:
    """The version in a `version_key`."""
    return int(key.rpartition(_END)[2])


def write_key(write_id: str) -> str:
    """Where the marker of a write lies."""
    return f"write/{write_id}"


def after(key: str) -> str:
    """The smallest string behind `key`."""
    return key + _END
