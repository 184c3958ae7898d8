"""Failures as the command line tells them: ``error: ...``, a hint what to type next, an exit code.

Exit codes: 0 done; 1 an error of the store, the network or a file; 2 wrong usage; 3 copies are missing (`forebay verify`,
`forebay replicate`); 130 interrupted. All of it goes to standard error, and tracebacks only with ``--verbose``.
"""

from __future__ import annotations

import sys
import traceback

from client.errors import (
    AllReplicasFailed,
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    CursorExpired,
    DiskFull,
    JobNotFound,
    MetadataUnavailable,
    NotEnoughReplicas,
    ObjectNotFound,
    PreconditionFailed,
    StoreError,
)

__all__ = ["COPIES_MISSING", "FAILED", "INTERRUPTED", "USAGE", "PluginFailed", "missing_package", "print_error", "report"]

FAILED = 1
USAGE = 2
COPIES_MISSING = 3
INTERRUPTED = 130

# What brings packages that only some commands need.
_EXTRAS = {
    "fastapi": "node",
    "httptools": "node",
    "jwt": "node",
    "prometheus_client": "node",
    "storenode": "node",
    "uvicorn": "node",
    "uvloop": "node",
    "PIL": "loader",
    "loader": "loader",
    "pyarrow": "loader",
    "simplejpeg": "loader",
    "torch": "loader",
}


class PluginFailed(Exception):
    """The commands of another package could not be loaded.

    Attributes
    ----------
    message : str
        Which ones, and what its import said.
    hint : str
        What to install.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def report(error: BaseException, *, verbose: bool) -> int:
    """Print `error` and return the exit code that it stands for."""
    if verbose:
        traceback.print_exception(error)
    print_error(_message(error), hint=_hint(error, verbose=verbose))
    return FAILED


def print_error(message: str, *, hint: str | None) -> None:
    """Print ``error: message`` and, on a line of its own, the hint."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def missing_package(error: ImportError) -> str:
    """The command that installs what `error` did not find."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    return f'pip install "forebay[{extra}]"' if extra else f"pip install {package or 'forebay'}"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        places = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{places}: {error.strerror}" if places else error.strerror
    if isinstance(error, ImportError):
        return f"a Python package that this command needs can't be imported: {error}"
    # The errors of every Forebay package carry their text here, those that this package doesn't know as well.
    message = getattr(error, "message", None)
    return message if isinstance(message, str) else f"unexpected {type(error).__name__}: {error}"


def _hint(error: BaseException, *, verbose: bool) -> str | None:
    if isinstance(error, StoreError):
        # Most messages name the command already.
        return None if "`forebay " in error.message else _next_command(error)
    if isinstance(error, PluginFailed):
        return error.hint
    if isinstance(error, ImportError):
        return missing_package(error)
    if isinstance(error, OSError) or isinstance(getattr(error, "message", None), str) or verbose:
        return None
    return "this is a defect; `forebay --verbose ...` shows where"


def _next_command(error: StoreError) -> str | None:
    bucket = (error.key or "").partition("/")[0] or "BUCKET"
    commands: dict[type[StoreError], str] = {
        AllReplicasFailed: "`forebay cluster status` shows which nodes are up",
        BucketExists: f"`forebay bucket set {bucket}` changes its policy",
        BucketNotEmpty: f"`forebay rm -r {bucket}` removes its objects",
        BucketNotFound: f"`forebay bucket create {bucket}` creates it",
        CursorExpired: "the store changed a lot meanwhile; run the command again",
        DiskFull: "`forebay cluster status` shows the free space of each node",
        JobNotFound: "`forebay job ls` shows the jobs",
        MetadataUnavailable: "`forebay cluster status` shows which nodes are up",
        NotEnoughReplicas: "`forebay cluster status` shows which nodes are up",
        ObjectNotFound: f"`forebay ls -r {bucket}` shows what is there",
        PreconditionFailed: "somebody else changed the object meanwhile; run the command again",
    }
    return commands.get(type(error))
