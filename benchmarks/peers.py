"""The environment (`.venv-peers`) of what suites measure against, apart from the project's."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PEERS", "install"]

PEERS = Path(".venv-peers")


def install(requirements: Sequence[str], *, stamp: str, without: Sequence[str] = ()) -> Path:
    """Install `requirements`, unless that was done before; returns the environment.

    Parameters
    ----------
    stamp : str
        Names what is installed. A file of that name holds the requirements, and is written last.
    without : sequence of str
        Packages that they bring and that are removed again.
    """
    done = PEERS / f"installed-{stamp}"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        if not (PEERS / "bin" / "pip").exists():
            venv.create(PEERS, with_pip=True)
        subprocess.run([PEERS / "bin" / "pip", "install", "--quiet", *requirements], check=True)
        if without:
            subprocess.run([PEERS / "bin" / "pip", "uninstall", "--quiet", "--yes", *without], check=True)
        done.write_text(wanted)
    return PEERS.resolve()
