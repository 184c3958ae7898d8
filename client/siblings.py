"""The check that the packages called client, storenode and loader on the import path are ours.

`client` and `loader` are common names. A script called loader.py beside a user's program is enough to hide our package, and
what follows would be an ImportError about some name that never was in that script. So each of the three packages asks here,
as the first thing its ``__init__`` does, and the error names both paths.

A package marks itself as ours by assigning its own name to ``__forebay__`` in its ``__init__``. The mark is read from the
compiled module, not from the imported one: a sibling is never executed to be checked (torch would take seconds, a foreign
module could do anything). A sibling that is not installed at all is no error; whoever needs it will say so.

`storenode` and `loader` can't rely on the name ``client`` before it was checked, so they reach this file by its place:

    __forebay__ = "loader"
    runpy.run_path(str(Path(__file__).parents[1] / "client" / "siblings.py"))["check_siblings"]()

For the same reason this module imports nothing of ours at its top. It does not know what the packages contain.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["check_siblings"]

_NAMES = ("client", "storenode", "loader")
_HOME = Path(__file__).resolve().parents[1]


def check_siblings() -> None:
    """Refuse to go on if somebody else's package or module has one of our names.

    Raises
    ------
    ForeignPackage
        Names where the import path leads, and where our package of that name is.
    """
    for name in _NAMES:
        place = _place_if_foreign(name)
        if place is not None:
            _refuse(name, place=place)


def _place_if_foreign(name: str) -> str | None:
    """Where ``import name`` leads, if that is not our package; None if it is, or if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # imported already, but made by hand: without a spec
        return str(getattr(sys.modules[name], "__file__", "a module made at run time"))
    if spec is None or _is_marked(spec):
        return None
    return spec.origin or ", ".join(spec.submodule_search_locations or ()) or "a module of unknown origin"


def _is_marked(spec: ModuleSpec) -> bool:
    """Whether the module's code, compiled but not run, assigns its own name to ``__forebay__``."""
    get_code = getattr(spec.loader, "get_code", None)
    if get_code is None:
        return False
    try:
        code = get_code(spec.name)
    except (ImportError, OSError, SyntaxError, ValueError):  # unreadable, or not Python of this version: not ours either way
        return False
    return code is not None and "__forebay__" in code.co_names and spec.name in code.co_consts


def _refuse(name: str, *, place: str) -> None:
    ours = _HOME / name
    message = (
        f"The import path leads to {place} for the package {name!r}, but Forebay's is {ours}. Rename the other one, "
        "or put it behind Forebay on sys.path (the directory of the running script comes first there)."
    )
    if name == "client":
        # Our errors are out of reach by name. The class from our file reads the same in a traceback, and nobody could
        # have imported another one to catch.
        raise runpy.run_path(str(ours / "errors.py"), run_name="client.errors")["ForeignPackage"](message, key=name)
    from client.errors import ForeignPackage

    raise ForeignPackage(message, key=name)
