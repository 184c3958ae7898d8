"""``python -m storenode`` is ``forebay node``, without loading the rest of the command line."""

from __future__ import annotations

import sys

import typer

from client.cli.report import report
from client.errors import StoreError
from storenode.cli import node


def main() -> None:
    """Run one node and exit."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(node)
    try:
        app()
    except StoreError as error:
        sys.exit(report(error, verbose=False))


if __name__ == "__main__":
    main()
