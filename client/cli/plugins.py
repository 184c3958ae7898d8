"""Commands of other packages: each entry point of the group is a function ``register(app)`` that adds them.

A package whose commands can't be loaded costs only these commands. In their place stands one with the entry point's name,
which says why they are missing and what to install.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from client.cli.report import PluginFailed, missing_package

__all__ = ["UNAVAILABLE", "load_plugins"]

GROUP = "forebay.commands"
UNAVAILABLE = "Not available"


def load_plugins(app: typer.Typer, plugins: Iterable[EntryPoint] | None = None) -> None:
    """Let every plug-in add its commands to `app`.

    Parameters
    ----------
    plugins : iterable of EntryPoint, optional
        By default those of the installed packages.
    """
    found = entry_points(group=GROUP) if plugins is None else plugins
    for plugin in sorted(found, key=lambda plugin: plugin.name):
        try:
            plugin.load()(app)
        # Whatever its import raises, the other commands must work.
        except Exception as error:
            _add_substitute(app, plugin.name, error)


def _add_substitute(app: typer.Typer, name: str, error: Exception) -> None:
    said = f"{type(error).__name__}: {error}"
    failed = PluginFailed(f"the commands of the package {name!r} can't be loaded: {said}", hint=_remedy(error))
    failed.__cause__ = error

    def substitute() -> None:
        raise failed

    anything: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(name, help=said, rich_help_panel=UNAVAILABLE, context_settings=anything)(substitute)


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return missing_package(error)
    return "`pip install --force-reinstall forebay` replaces a damaged installation"
