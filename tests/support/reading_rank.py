"""One rank that reads an epoch of a dataset, as a process: ``python -m tests.support.reading_rank URL OPTIONS``.

OPTIONS are those of `ShardedDataset`, in JSON. It prints what it had, in JSON: the rows of each batch, the receipt, and what
was read by which way.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from loader import ShardedDataset


def main() -> None:
    """Read, and print."""
    with ShardedDataset(sys.argv[1], **json.loads(sys.argv[2])) as dataset:
        batches = [batch["row"].tolist() for batch in dataset]
        reads = asdict(dataset._open().datasets[0].store.chunks.reads)
        print(json.dumps({"batches": batches, "receipt": dataset.receipt(), "reads": reads}))


if __name__ == "__main__":
    main()
