"""The loader: the dataset format, its exact order, and the PyTorch dataset that streams it.

Writing: `columns` and `values` (types, checks) → `block` (column-major, compressed) → `writer` (lanes, one commit); `sources`
reads what datasets are built from. Reading: `index` → `order` (which row when) → `assignment` (which rank) → `plan` (which
block when) → `prefetch` (ahead of use, into the `arena`) → `items` (batches of tensors, made in threads if there is more to do)
→ `iteration` → `stream` and `dataset`. Only what makes tensors needs torch, so `dataset` is imported when first asked for.
"""

from __future__ import annotations

__forebay__ = "loader"

import importlib
import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "client" / "siblings.py"))["check_siblings"]()

from typing import TYPE_CHECKING, Any

from loader.errors import LoaderError

if TYPE_CHECKING:
    from loader.dataset import ShardedDataset as ShardedDataset
    from loader.device import DevicePrefetcher as DevicePrefetcher
    from loader.mixed import MixedDataset as MixedDataset
    from loader.receipt import receipt_table as receipt_table
    from loader.tensors import TensorReader as TensorReader
    from loader.tensors import load_tensors as load_tensors
    from loader.tensors import save_tensors as save_tensors
    from loader.writer import ShardWriter as ShardWriter

__all__ = [
    "DevicePrefetcher",
    "LoaderError",
    "MixedDataset",
    "ShardWriter",
    "ShardedDataset",
    "TensorReader",
    "load_tensors",
    "receipt_table",
    "save_tensors",
]

_MODULES = {
    "DevicePrefetcher": "loader.device",
    "MixedDataset": "loader.mixed",
    "ShardWriter": "loader.writer",
    "ShardedDataset": "loader.dataset",
    "TensorReader": "loader.tensors",
    "load_tensors": "loader.tensors",
    "receipt_table": "loader.receipt",
    "save_tensors": "loader.tensors",
}


def __getattr__(name: str) -> Any:
    # Writing a dataset must work where torch is not installed, and importing torch takes seconds.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as exc:
        if exc.name not in ("torch", "simplejpeg", "PIL"):
            raise
        raise ModuleNotFoundError(
            f"loader.{name} needs {exc.name}, which is not installed: pip install 'forebay[loader]' "
            "(ShardWriter and the `forebay dataset` commands work without it)",
            name=exc.name,
        ) from exc
