"""The state of a stream: what is needed to go on at exactly the next sample, on any number of ranks.

It is the same on every rank and has under a kilobyte: the position in the epoch is one number, because the order is a pure
function of the rest. World size, batch size and workers are not in it; any may change when the state is taken up again.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from loader.errors import FormatUnsupported, StateInvalid, StateMismatch
from loader.order import MAX_ROWS, ORDER_ALGORITHM

__all__ = ["LANE_MAPS", "STATE_FORMAT", "LoaderState"]

STATE_FORMAT: Final = 1
LANE_MAPS: Final = ("rotate", "fixed", "placed", r"placed:[A-Za-z0-9._-]{1,100}:[0-9]{1,7}:[0-9a-f]{16}")
_LIMITS: Final = {"dataset_version": 1 << 63, "seed": 1 << 64, "epoch": 1 << 63, "samples_consumed": MAX_ROWS + 1}
_PATTERNS: Final = {
    "dataset_digest": r"[0-9a-f]{64}",
    "order_algorithm": r"[a-z0-9.-]{1,64}",
    "lane_map": "|".join(LANE_MAPS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Where a stream is.

    Attributes
    ----------
    dataset_digest : str
        Digest of the dataset, 64 hex digits.
    dataset_version : int
        Version of the object that held it; a hint for reopening it after the name has moved on.
    seed, epoch : int
        What the order depends on, beside the digest.
    samples_consumed : int
        Samples of this epoch that all ranks together have consumed: the position to go on at.
    shuffle : bool
        Whether the order is shuffled.
    order_algorithm : str
        `loader.order.ORDER_ALGORITHM` of whoever saved it.
    lane_map : str
        How runs go to ranks: ``rotate`` (by epoch), ``fixed``, or ``placed`` near their data; in the middle of an epoch with
        the run, the number of ranks, and a hash of the order that they had agreed on (`loader.agreement`).
    format : int
        Of the state itself.
    """

    dataset_digest: str
    dataset_version: int
    seed: int
    epoch: int
    samples_consumed: int
    shuffle: bool
    order_algorithm: str = ORDER_ALGORITHM
    lane_map: str = "rotate"
    format: int = STATE_FORMAT

    def to_json(self) -> dict[str, Any]:
        """A dict of numbers, texts and booleans, for a checkpoint or JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> LoaderState:
        """Inverse of `to_json`.

        Raises
        ------
        StateInvalid
            If a field is missing, unknown or not what it should be.
        FormatUnsupported
            If a newer version saved it.
        """
        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise StateInvalid(f"a loader state is a dict with a format number, found {str(value)[:200]}")
        if value["format"] > STATE_FORMAT:
            raise FormatUnsupported(f"the state has format {value['format']}, this Forebay reads up to {STATE_FORMAT}: upgrade")
        names = [entry.name for entry in fields(cls)]
        if value.keys() != set(names) or value["format"] < 1:
            raise StateInvalid(f"a loader state has the fields {', '.join(names)}, found {str(sorted(map(str, value)))[:400]}")
        for name, limit in _LIMITS.items():
            if type(value[name]) is not int or not 0 <= value[name] < limit:
                raise StateInvalid(f"the state's {name} is a number from 0 to {limit - 1}, found {str(value[name])[:40]!r}")
        for name, pattern in _PATTERNS.items():
            if not isinstance(value[name], str) or re.fullmatch(pattern, value[name]) is None:
                raise StateInvalid(f"the state's {name} is a text like {pattern}, found {str(value[name])[:80]!r}")
        if not isinstance(value["shuffle"], bool):
            raise StateInvalid(f"the state's shuffle is true or false, found {str(value['shuffle'])[:80]!r}")
        return cls(**value)

    def check_against(self, *, dataset_digest: str, num_rows: int, seed: int, shuffle: bool) -> None:
        """Raise `StateMismatch`, which names both values, unless this state belongs to that stream.

        Parameters
        ----------
        dataset_digest, num_rows
            Of the dataset that is open.
        seed, shuffle
            As the loader was made.
        """
        current = {
            "dataset_digest": dataset_digest,
            "order_algorithm": ORDER_ALGORITHM,
            "seed": seed,
            "shuffle": shuffle,
        }
        for name, wanted in current.items():
            saved = getattr(self, name)
            if saved != wanted:
                raise StateMismatch(
                    f"the state was saved with {name}={saved!r}, the loader has {name}={wanted!r}: the orders differ",
                    field=name,
                    saved=saved,
                    current=wanted,
                )
        if self.samples_consumed > num_rows:
            raise StateMismatch(
                f"the state was saved after {self.samples_consumed} samples of an epoch, the dataset has {num_rows}",
                field="samples_consumed",
                saved=self.samples_consumed,
                current=num_rows,
            )
