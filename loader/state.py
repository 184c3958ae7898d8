"""The state of a stream: what is needed to go on at exactly the next sample, on any number of ranks.

It is the same on every rank and has under a kilobyte: the position in the epoch is one number, because the order is a pure
function of the rest. World size, batch size and workers are not in it; any may change when the state is taken up again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from loader.errors import FormatUnsupported, StateInvalid, StateMismatch
from loader.mixture import ROUND_POSITIONS
from loader.order import MAX_ROWS, ORDER_ALGORITHM

__all__ = ["LANE_MAPS", "STATE_FORMAT", "ComponentState", "LoaderState"]

STATE_FORMAT: Final = 1
LANE_MAPS: Final = ("rotate", "fixed", "placed", r"placed:[A-Za-z0-9._-]{1,100}:[0-9]{1,7}:[0-9a-f]{16}")
_LIMITS: Final = {"dataset_version": 1 << 63, "seed": 1 << 64, "epoch": 1 << 63, "samples_consumed": MAX_ROWS + 1}
_OF_MIXTURES: Final = frozenset({"components", "epoch_samples"})
_PATTERNS: Final = {
    "dataset_digest": r"[0-9a-f]{64}",
    "order_algorithm": r"[a-z0-9.-]{1,64}",
    "lane_map": "|".join(LANE_MAPS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentState:
    """One dataset of a mixture.

    Attributes
    ----------
    digest, version
        As `dataset_digest` and `dataset_version` of a state.
    weight : int
        Its part of 4,096.
    """

    digest: str
    version: int
    weight: int

    @classmethod
    def from_json(cls, value: object) -> ComponentState:
        """Inverse of `dataclasses.asdict`; raises `StateInvalid`."""
        if not isinstance(value, dict) or value.keys() != {"digest", "version", "weight"}:
            raise StateInvalid(f"a component of a state has the fields digest, version, weight, found {str(value)[:200]}")
        _check_text("component's digest", value["digest"], _PATTERNS["dataset_digest"])
        _check_number("component's version", value["version"], _LIMITS["dataset_version"])
        _check_number("component's weight", value["weight"], ROUND_POSITIONS + 1)
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Where a stream is.

    Attributes
    ----------
    dataset_digest : str
        Digest of the dataset, or of the mixture, 64 hex digits.
    dataset_version : int
        Version of the object that held it; a hint for reopening it after the name has moved on. 0 for a mixture.
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
    components : tuple of ComponentState
        The datasets of a mixture, in its order; empty for a dataset alone, whose JSON does not have it.
    epoch_samples : int
        Samples of an epoch of the mixture; 0 for a dataset alone, whose JSON does not have it.
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
    components: tuple[ComponentState, ...] = ()
    epoch_samples: int = 0
    format: int = STATE_FORMAT

    def to_json(self) -> dict[str, Any]:
        """A dict of numbers, texts and booleans, for a checkpoint or JSON; with a list of such dicts for a mixture."""
        value = asdict(self)
        if not self.components:
            return {name: value[name] for name in value if name not in _OF_MIXTURES}
        return value | {"components": list(value["components"])}

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
        names = [entry.name for entry in fields(cls) if entry.name not in _OF_MIXTURES or entry.name in value]
        if value.keys() != set(names) or len(value.keys() & _OF_MIXTURES) == 1 or value["format"] < 1:
            raise StateInvalid(f"a loader state has the fields {', '.join(names)}, found {str(sorted(map(str, value)))[:400]}")
        for name, limit in _LIMITS.items():
            _check_number(name, value[name], limit)
        for name, pattern in _PATTERNS.items():
            _check_text(name, value[name], pattern)
        if not isinstance(value["shuffle"], bool):
            raise StateInvalid(f"the state's shuffle is true or false, found {str(value['shuffle'])[:80]!r}")
        if "components" not in value:
            return cls(**value)
        _check_number("epoch_samples", value["epoch_samples"], MAX_ROWS + 1)
        if not isinstance(value["components"], list) or not value["components"]:
            raise StateInvalid(f"the state's components are a list of datasets, found {str(value['components'])[:200]}")
        return cls(**value | {"components": tuple(map(ComponentState.from_json, value["components"]))})

    def check_components(self, weights: Sequence[int]) -> None:
        """Raise `StateMismatch`, which names both values, unless the state is of a mixture with these weights."""
        saved = [component.weight for component in self.components]
        if saved != list(weights):
            raise StateMismatch(
                f"the state was saved with datasets weighted {saved or 'not at all, of a dataset alone'}, "
                f"the loader has {list(weights)} (parts of {ROUND_POSITIONS}): the orders differ",
                field="weights",
                saved=saved,
                current=list(weights),
            )

    def check_against(
        self,
        *,
        dataset_digest: str,
        num_rows: int,
        seed: int,
        shuffle: bool,
        order_algorithm: str = ORDER_ALGORITHM,
        epoch_samples: int = 0,
    ) -> None:
        """Raise `StateMismatch`, which names both values, unless this state belongs to that stream.

        Parameters
        ----------
        dataset_digest, num_rows
            Of the dataset, or mixture, that is open.
        seed, shuffle
            As the loader was made.
        order_algorithm, epoch_samples
            Of the stream.
        """
        current = {
            "dataset_digest": dataset_digest,
            "order_algorithm": order_algorithm,
            "epoch_samples": epoch_samples,
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


def _check_number(name: str, value: object, limit: int) -> None:
    if type(value) is not int or not 0 <= value < limit:
        raise StateInvalid(f"the state's {name} is a number from 0 to {limit - 1}, found {str(value)[:40]!r}")


def _check_text(name: str, value: object, pattern: str) -> None:
    if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
        raise StateInvalid(f"the state's {name} is a text like {pattern}, found {str(value)[:80]!r}")
