"""Runs one of the recipes of docs/LOADER.md, as a process, and notes which rows its training steps saw.

``python -m tests.support.recipe NAME DIRECTORY`` writes ``DIRECTORY/NAME-RANK.json``. The code is that of the page, but for
`step`, around which the rows are noted; those that only fill up a batch are not.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

__all__ = ["recipes"]

PAGE = Path(__file__).parents[2] / "docs" / "LOADER.md"


def recipes() -> dict[str, str]:
    """The recipes' code by their names."""
    return dict(re.findall(r"```python\n# recipe: (\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL))


def main() -> None:
    """Run it."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    found, rows = recipes(), list[int]()
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(found["common"], "docs/LOADER.md: common", "exec"), namespace)
    step = namespace["step"]

    def noting(model: Any, optimizer: Any, batch: dict[str, Any]) -> None:
        real = ~batch["_pad"] if "_pad" in batch else slice(None)
        rows.extend(batch["row"][real].tolist())
        step(model, optimizer, batch)

    namespace["step"] = noting
    exec(compile(found[name], f"docs/LOADER.md: {name}", "exec"), namespace)
    (directory / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
