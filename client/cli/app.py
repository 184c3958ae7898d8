"""The root of the command line: global options, the tree of commands, and what becomes of failures.

Every failure ends here. What is raised below a command is printed by `client.cli.report` and becomes its exit code;
commands themselves catch nothing.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from client.cli import admin, buckets, gc, jobs, nodes, objects, snapshots, transfers
from client.cli.connection import Settings
from client.cli.plugins import UNAVAILABLE, load_plugins
from client.cli.report import INTERRUPTED, USAGE, print_error, report

__all__ = ["build_app"]

# Typer carries its own copy of click since 0.16 and uses the package before, so the base of its errors is taken from one.
UsageError = cast(type[Exception], typer.BadParameter.__base__)


class Commands(TyperGroup):
    """The root command."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line and exit with its code."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.Abort:
            code = INTERRUPTED
        except UsageError as error:
            code = _report_usage(error)
        raise SystemExit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names; what it raises is printed and becomes an exit code."""
        try:
            return super().invoke(ctx)
        except (UsageError, typer.Exit, typer.Abort, BrokenPipeError):
            raise  # answers to the user, and `forebay ls | head`, which main settles
        except Exception as error:
            settings = ctx.find_object(Settings)
            code = report(error, verbose=settings is not None and settings.verbose)
        raise typer.Exit(code)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; a missing one may belong to a plug-in that could not be loaded."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            missing = [name for name, command in self.commands.items() if _panel(command) == UNAVAILABLE]
            if missing:
                error.message += f" The commands of {' and '.join(missing)} could not be loaded."  # type: ignore[attr-defined]
                ctx.meta[UNAVAILABLE] = missing
            raise


def build_app() -> typer.Typer:
    """The whole command line, with the commands of the other installed packages."""
    app = typer.Typer(
        name="forebay",
        cls=Commands,
        callback=_global_options,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
    )
    transfers.register(app)
    objects.register(app)
    buckets.register(app)
    snapshots.register(app)
    admin.register(app)
    jobs.register(app)
    gc.register(app)
    nodes.register(app)
    load_plugins(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"forebay {version('forebay')}")
        except PackageNotFoundError:
            print("forebay, run from its source tree")
        raise typer.Exit


def _global_options(
    ctx: typer.Context,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="A node's address, http://HOST:PORT; several: again, or comma separated.", metavar="URL"),
    ] = None,
    token: Annotated[str | None, typer.Option(help="Bearer token; FOREBAY_TOKEN keeps it out of the process list.")] = None,
    profile: Annotated[str | None, typer.Option(help="Section of the config file.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log and, of errors, the traceback.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Forebay: a distributed object store for tensors and datasets.

    Paths are bucket/key or forebay://bucket/key. The cluster is found by --endpoint, FOREBAY_ENDPOINT, a profile in
    ~/.config/forebay/config.toml, or else at http://127.0.0.1:7070.

    Exit codes: 0 done, 1 an error, 2 wrong usage, 3 copies are missing (verify, replicate), 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit
    endpoints = tuple(url for given in endpoint for url in given.split(",") if url.strip()) if endpoint else None
    ctx.obj = Settings(endpoints=endpoints, token=token, profile=profile, verbose=verbose)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _report_usage(error: Exception) -> int:
    ctx = getattr(error, "ctx", None)
    message = error.format_message()  # type: ignore[attr-defined]
    if ctx is None:
        print_error(message, hint="`forebay --help` shows the commands")
    elif UNAVAILABLE in ctx.meta:
        print_error(message, hint=" and ".join(f"`forebay {name}`" for name in ctx.meta[UNAVAILABLE]) + " says why")
    else:
        print_error(message, hint=f"`{ctx.command_path} --help` shows how it is used")
    return USAGE


def _panel(command: Any) -> str | None:
    panel = getattr(command, "rich_help_panel", None)
    return panel if isinstance(panel, str) else None
