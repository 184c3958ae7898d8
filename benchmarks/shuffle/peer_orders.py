"""The peers' orders, by their own code: run in the peers' environment as ``python -m benchmarks.shuffle.peer_orders OPTIONS``.

Options are a line of JSON; one ``.npy`` file for each order is written to `out`, named by the order.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import litdata
import numpy as np
import webdataset
from streaming.base.shuffle import get_shuffle


def main() -> None:
    """Write all orders."""
    options = json.loads(sys.argv[1])
    rows, shard_rows, buffer_rows, out = (options[name] for name in ("rows", "shard_rows", "buffer_rows", "out"))
    shards = [range(start, min(rows, start + shard_rows)) for start in range(0, rows, shard_rows)]
    sizes = np.array([len(shard) for shard in shards])
    for block_rows in options["py1e_blocks"]:
        _save(out, f"py1e {block_rows}", get_shuffle("py1e", sizes, 1, 0, 0, block_rows))
    # As a pipeline with shardshuffle does it: the shards in any order, then the buffer.
    random.Random(0).shuffle(shards)
    samples = (row for shard in shards for row in shard)
    _save(out, "webdataset", np.fromiter(webdataset.shuffle(buffer_rows, seed=0)(samples), np.int64, count=rows))
    with tempfile.TemporaryDirectory() as directory:
        litdata.optimize(
            fn=partial(_numbers, rows),
            inputs=[0],
            output_dir=directory,
            chunk_size=shard_rows,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )
        dataset = litdata.StreamingDataset(directory, shuffle=True)
        _save(out, "litdata", np.fromiter((int(number) for number in dataset), np.int64, count=rows))


def _numbers(rows: int, _: int) -> Iterator[int]:
    yield from range(rows)


def _save(out: str, name: str, order: np.ndarray) -> None:
    np.save(Path(out) / f"{name}.npy", order)


if __name__ == "__main__":
    main()
