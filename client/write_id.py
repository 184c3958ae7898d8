"""The id of one logical write, minted by whoever begins it and kept across its retries."""

from __future__ import annotations

import uuid

__all__ = ["new_write_id"]


def new_write_id() -> str:
    """A fresh id for one write; the object's ETag afterwards."""
    return uuid.uuid4().hex
