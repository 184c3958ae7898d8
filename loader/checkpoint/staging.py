"""Copies of a state on the CPU for `async_save`, in buffers that are used again as long as the state keeps its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

# What torch's own writers stage with; it knows distributed tensors.
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict

__all__ = ["staged"]


def staged(state_dict: dict[str, Any], buffers: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of `state_dict` that training may go on beside.

    Parameters
    ----------
    buffers : dict, optional
        What this returned for the last state: overwritten, and returned again, if this state has the same shape.
    """
    if buffers is None or list(_tensors(buffers)) != list(_tensors(state_dict)):
        buffers = _create_cpu_state_dict(state_dict, pin_memory=torch.cuda.is_available())
    copied: dict[str, Any] = _copy_state_dict(state_dict, buffers)
    return copied


def _tensors(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the tensors of a nested state are, and their shapes and types."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, (*path, number))
    elif isinstance(value, torch.Tensor):
        yield path, type(value), value.shape, value.dtype
    else:
        yield (path,)
