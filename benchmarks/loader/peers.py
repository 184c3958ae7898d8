"""The peers' environment: what is installed for them, and the stand-in that one of them needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.peers import install

__all__ = ["python"]

# torch is the release that the project is tested with, also so that none of the peers brings a build for GPUs.
_REQUIREMENTS: Final = (
    "torch==2.13.0",
    "litdata==0.2.76",
    "mosaicml-streaming==0.13.0",
    "webdataset==1.0.2",
    "datasets==5.0.1",
    "lancedb==0.40.0",
    "pylance==14.0.2",
)
_STAND_IN: Final = {
    "__init__.py": "",
    "datasets.py": "class VisionDataset:\n    pass\n",
    "transforms/__init__.py": "",
    "transforms/functional.py": "def to_tensor(image):\n    raise NotImplementedError\n",
}


def python() -> Path:
    """The interpreter of the peers' environment, which is made if it is not there yet."""
    environment = install(_REQUIREMENTS, stamp="loader", without=("torchvision",))
    # mosaicml-streaming imports torchvision, which doesn't import beside a torch without CUDA, and uses it for images alone.
    packages = next((environment / "lib").glob("python3.*")) / "site-packages"
    for name, text in _STAND_IN.items():
        path = packages / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return environment / "bin" / "python"
