"""torch's dtypes and those of the safetensors format.

What the format has no name for (complex128, complex32, ...) is stored as the bytes of its elements, ``U8`` with one dimension
more, and named in the file's metadata. What torch has no dtype for (F6, and F4 in an older torch) is read as its bytes, uint8
of one dimension. F4 packs two elements into a byte, which is one element of torch's float4_e2m1fn_x2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from loader.errors import TensorsCorrupt
from loader.tensors.header import TensorEntry

__all__ = ["is_stored_as_bytes", "stored_type", "torch_dtype", "torch_type"]

_NAMES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{word}{bits}" for kind, word in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
# Older releases of torch lack some of them.
_TORCH: Final[Mapping[str, torch.dtype]] = {
    name: getattr(torch, torch_name) for name, torch_name in _NAMES.items() if hasattr(torch, torch_name)
}
_STORED: Final = {dtype: name for name, dtype in _TORCH.items()}


def is_stored_as_bytes(tensor: torch.Tensor) -> bool:
    """Whether the format has no name for the tensor's dtype."""
    # Elements of F4 are counted singly, so that a scalar pair of them has no shape.
    return tensor.dtype not in _STORED or (_STORED[tensor.dtype] == "F4" and not tensor.dim())


def stored_type(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of the entry that holds the tensor."""
    shape = tuple(tensor.shape)
    if is_stored_as_bytes(tensor):
        return "U8", (*shape, tensor.dtype.itemsize)
    dtype = _STORED[tensor.dtype]
    return (dtype, (*shape[:-1], 2 * shape[-1])) if dtype == "F4" else (dtype, shape)


def torch_type(entry: TensorEntry) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the tensor that the entry holds, if nothing else is said of it."""
    dtype, shape = _TORCH.get(entry.dtype), entry.shape
    if dtype is None or (entry.dtype == "F4" and (not shape or shape[-1] % 2)):
        return torch.uint8, (entry.num_bytes,)
    return (dtype, (*shape[:-1], shape[-1] // 2)) if entry.dtype == "F4" else (dtype, shape)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that ``str(dtype)`` gave `name`; raises `TensorsCorrupt` if this torch has none."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise TensorsCorrupt(f"the file names the dtype {name[:80]!r}, which torch {torch.__version__} does not have")
    return dtype
