"""The command line: ``forebay COMMAND ...``.

`app` is the root (global options, failures), `plugins` adds the commands of other packages (entry-point group
``forebay.commands``). The commands: `transfers` (put, get, sync), `objects` (cat, cp, mv, rm, ls, stat, du), `buckets`,
`admin` (replicate, verify, scrub, cluster, job). Each is thin: it reads its arguments (`paths`), calls a function of the
library and prints through `output`. `report` knows what errors look like and which exit codes there are.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit."""
    from client.cli.app import build_app
    from client.cli.report import INTERRUPTED

    try:
        build_app()(prog_name="forebay")
    except SystemExit as done:
        if done.code == INTERRUPTED:
            # What was begun has been cleaned up. Threads that still wait for a silent node would hold the process
            # back for as long as its timeout.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
