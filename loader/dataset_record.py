"""What the record of a dataset's object says besides its content: its type, and metadata that a listing can show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from client.record import MAX_METADATA_BYTES
from loader.errors import InvalidOption
from loader.index import DatasetIndex

__all__ = ["CONTENT_TYPE", "METADATA_KEY", "PART_CONTENT_TYPE", "check_metadata", "described"]

CONTENT_TYPE: Final = "application/x-forebay-dataset"
PART_CONTENT_TYPE: Final = "application/x-forebay-build"
METADATA_KEY: Final = "forebay-dataset"
_OWN_BYTES: Final = 256
"""Of the object's metadata, for what the writer says of the dataset."""


def described(index: DatasetIndex) -> str:
    """The value of `METADATA_KEY`."""
    return json.dumps({"format": index.format, "digest": index.digest, "rows": index.num_rows}, separators=(",", ":"))


def check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """A copy of what a user wants to keep with a dataset, or `InvalidOption`."""
    if METADATA_KEY in metadata:
        raise InvalidOption(f"metadata: the key {METADATA_KEY!r} is the writer's own; choose another")
    size, most = (
        sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items()),
        MAX_METADATA_BYTES - _OWN_BYTES,
    )
    if size > most:
        raise InvalidOption(f"metadata: {size} bytes; an object has room for {most} beside what the writer adds")
    return dict(metadata)
