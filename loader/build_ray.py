"""Reading the input of a build on the machines of a Ray cluster. Ray is taken only when it is asked for.

A piece of the input becomes a task: the machine that runs it reads, unpacks, parses and checks, and hands on the checked rows.
Inputs are therefore such that every machine can read: URLs, or a file system that they share. Pieces that carry their bytes
(JSON lines, CSV, tar and .npz, which are read from front to back) take them along from the process that builds. That process
deals the rows to lanes, compresses and stores, so rows pass through its network twice: that is the limit of this way.

What is built, and that a killed build goes on, does not depend on where pieces are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from loader.columns import EncodedColumn, Schema
from loader.errors import InvalidOption, LoaderError
from loader.source_rows import Piece, SourceError

__all__ = ["encoding_on_ray", "num_ray_cpus"]

Batch = tuple[EncodedColumn, ...]


def num_ray_cpus() -> int:
    """Cores of the Ray cluster; joins the one that ``RAY_ADDRESS`` names, or starts one here."""
    return max(1, int(_ray().cluster_resources().get("CPU", 1)))


@contextmanager
def encoding_on_ray(schema: Schema) -> Iterator[Callable[[Piece], tuple[Piece, Batch]]]:
    """What encodes a piece as a Ray task, and waits for it. Raises as `Piece.encode` does."""
    ray = _ray()
    task, shared = ray.remote(_encode), ray.put(schema)

    def encode(piece: Piece) -> tuple[Piece, Batch]:
        try:
            result = ray.get(task.remote(piece, shared))
        except ray.exceptions.RayError as exc:
            raise SourceError(f"the Ray task that reads the input from {piece.place} on failed: {exc}") from exc
        if isinstance(result, LoaderError):
            raise result
        return piece, result

    yield encode


def _encode(piece: Piece, schema: Schema) -> Batch | LoaderError:
    # As a value: raised in a task, an error would arrive as one of Ray's.
    try:
        return piece.encode(schema)
    except LoaderError as error:
        return error


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as exc:
        raise InvalidOption("reading on Ray needs ray; install it with: pip install 'forebay[loader,ray]'") from exc
    module: ModuleType = ray
    if not module.is_initialized():
        module.init(log_to_driver=False)
    return module
