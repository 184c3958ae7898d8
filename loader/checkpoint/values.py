"""Values of a state dict that are no tensors, as JSON: what a checkpoint holds beside tensors. Never pickles.

Numbers, texts, booleans, None, lists and dicts with texts for keys are what JSON has. Tuples, bytes and other dicts are written
as an object with the single key ``$``. Whatever else there is must be turned into one of these by who saves it. Pure.
"""

from __future__ import annotations

import base64
from typing import Any

from loader.errors import InvalidOption, TensorsCorrupt

__all__ = ["decode_value", "encode_value"]

_TAG = "$"


def encode_value(value: object, *, name: str) -> Any:
    """`value` as what `json.dumps` takes; raises `InvalidOption`, naming the entry `name`, if it can't be had back."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [encode_value(item, name=name) for item in value]
    if isinstance(value, tuple):
        return {_TAG: ["tuple", [encode_value(item, name=name) for item in value]]}
    if isinstance(value, bytes | bytearray):
        return {_TAG: ["bytes", base64.b64encode(value).decode()]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and value.keys() != {_TAG}:
            return {key: encode_value(item, name=name) for key, item in value.items()}
        pairs = [[encode_value(key, name=name), encode_value(item, name=name)] for key, item in value.items()]
        return {_TAG: ["dict", pairs]}
    raise InvalidOption(
        f"{name!r} holds a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors, numbers, texts, "
        "bytes, booleans, None, and lists, tuples and dicts of these: have its state_dict() return such"
    )


def decode_value(value: Any) -> Any:
    """Inverse of `encode_value`; raises `TensorsCorrupt`."""
    if isinstance(value, list):
        return [decode_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {_TAG}:
        return {key: decode_value(item) for key, item in value.items()}
    try:
        match value[_TAG]:
            case ["tuple", items]:
                return tuple(decode_value(item) for item in items)
            case ["bytes", text]:
                return base64.b64decode(text, validate=True)
            case ["dict", pairs]:
                return {decode_value(key): decode_value(item) for key, item in pairs}
    except (TypeError, ValueError) as exc:
        raise TensorsCorrupt(f"a value of the checkpoint can't be read: {exc!r} in {str(value)[:200]}") from exc
    raise TensorsCorrupt(f"a value of the checkpoint can't be read: {str(value)[:200]}")
