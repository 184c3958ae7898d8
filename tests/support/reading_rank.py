"""One rank that reads an epoch of a dataset, as a process: ``python -m tests.support.reading_rank URL OPTIONS``.

OPTIONS are those of `ShardedDataset`, in JSON. It prints what it had, in JSON: the rows of each batch, and the receipt.
"""

from __future__ import annotations

import json
import sys

from loader import ShardedDataset


def main() -> None:
    """Read, and print."""
    with ShardedDataset(sys.argv[1], **json.loads(sys.argv[2])) as dataset:
        batches = [batch["row"].tolist() for batch in dataset]
        print(json.dumps({"batches": batches, "receipt": dataset.receipt()}))


if __name__ == "__main__":
    main()
