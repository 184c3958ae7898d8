"""A tensor's elements as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["bytes_of"]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's elements, in C order; its own memory where it lies on the CPU in that order, else a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat: np.ndarray[Any, Any] = plain.reshape(-1).view(torch.uint8).numpy()
    return flat.data
