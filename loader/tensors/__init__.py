"""Tensors as objects: one object is one safetensors file, which any reader of the format opens.

Saving: `sharing` (what lies in the same memory) → `dtypes` → `layout` (order, chunks) → `header` → `save`. Loading: `header` →
`contents` → `region` (slices as ranges of bytes) → `gathering` (few reads) → `reader`; `compare` (which tensors
of two objects differ).
"""

from __future__ import annotations

from loader.tensors.compare import Difference, compare
from loader.tensors.reader import TensorReader, load_tensors
from loader.tensors.save import save_tensors

__all__ = ["Difference", "TensorReader", "compare", "load_tensors", "save_tensors"]
