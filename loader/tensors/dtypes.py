"""torch's dtypes and those of the safetensors format.

What the format has no name for (complex128, complex32, ...) is stored as the bytes of its elements, ``U8`` with one dimension
more, and named in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from loader.errors import TensorsCorrupt
from loader.tensors.header import TensorEntry

__all__ = ["dtype_of", "stored_dtype", "torch_dtype"]

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
}
# Older releases of torch lack some of them.
_TORCH: Final[Mapping[str, torch.dtype]] = {
    name: getattr(torch, torch_name) for name, torch_name in _NAMES.items() if hasattr(torch, torch_name)
}
_STORED: Final = {dtype: name for name, dtype in _TORCH.items()}


def stored_dtype(dtype: torch.dtype) -> str | None:
    """The format's name of `dtype`; None if it is to be stored as bytes."""
    return _STORED.get(dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that ``str(dtype)`` gave `name`; raises `TensorsCorrupt` if this torch has none."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise TensorsCorrupt(f"the file names the dtype {name[:80]!r}, which torch {torch.__version__} does not have")
    return dtype


def dtype_of(entry: TensorEntry) -> torch.dtype:
    """The dtype of a tensor of the file; raises `TensorsCorrupt` for one that torch has no equal of (F4, F6)."""
    if entry.dtype not in _TORCH:
        raise TensorsCorrupt(
            f"tensor {entry.name!r} is of dtype {entry.dtype}, which torch {torch.__version__} does not have; read its bytes "
            "with Client.get"
        )
    return _TORCH[entry.dtype]
