"""Stands for `storenode.surplus.Surplus` where all copies are where they belong."""

from __future__ import annotations

from storenode.surplus import Surplus

__all__ = ["NothingElsewhere"]


class NothingElsewhere(Surplus):
    """Nothing may be given up."""

    def __init__(self) -> None:
        pass

    def layout(self) -> None:
        """None: there is no layout by which a copy could belong elsewhere."""
