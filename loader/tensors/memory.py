"""A tensor's elements as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["bytes_of", "is_plain"]


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is what `bytes_of` gives: on the CPU, its elements in C order."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's elements, in C order; its own memory where it `is_plain`, else a copy."""
    plain = tensor.detach()
    if not is_plain(plain):
        plain = plain.resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain if plain.dim() == 1 else plain.reshape(-1)
    array: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy()
    return array.data
