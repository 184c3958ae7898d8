"""A package of somebody else's with one of our names is refused, and both paths are named.

Each case runs in an interpreter of its own, on an import path made for it: first a folder with the foreign package, then
either a small installation with the real check in it, or this very tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
NAMES = ("client", "storenode", "loader")
PAIRS = [(importer, foreign) for importer in NAMES for foreign in NAMES if importer != foreign]

_CALL_BY_NAME = "from client.siblings import check_siblings\ncheck_siblings()\n"
_CALL_BY_PLACE = """\
import runpy
from pathlib import Path
runpy.run_path(str(Path(__file__).parents[1] / "client" / "siblings.py"))["check_siblings"]()
"""
_LOUD = "raise SystemExit('the foreign module was executed')\n"


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A folder with our three packages: marks, check and errors, and nothing else in them."""
    home = tmp_path / "ours"
    for name in NAMES:
        (home / name).mkdir(parents=True)
        call = _CALL_BY_NAME if name == "client" else _CALL_BY_PLACE
        (home / name / "__init__.py").write_text(f'__forebay__ = "{name}"\n{call}')
    for file in ("siblings.py", "errors.py"):
        shutil.copy(REPOSITORY / "client" / file, home / "client" / file)
    return home


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def run_python(code: str, *, import_path: tuple[Path, ...], site: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `code` with `import_path` in front, and without site-packages unless `site` is set."""
    options = ["-P"] if site else ["-P", "-S"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, import_path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *options, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def assert_refused(run: subprocess.CompletedProcess[str], *, ours: Path, foreign: Path) -> None:
    assert run.returncode == 1, run.stderr
    last_line = run.stderr.strip().splitlines()[-1]
    assert last_line.startswith("client.errors.ForeignPackage: ")
    assert str(ours) in last_line
    assert str(foreign) in last_line


@pytest.mark.parametrize("importer", NAMES)
def test_our_own_packages_pass(importer: str, installation: Path) -> None:
    run = run_python(f"import {importer}", import_path=(installation,))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("importer", "foreign"), PAIRS)
def test_a_foreign_package_is_refused(importer: str, foreign: str, installation: Path, elsewhere: Path) -> None:
    (elsewhere / foreign).mkdir()
    (elsewhere / foreign / "__init__.py").write_text(_LOUD)
    run = run_python(f"import {importer}", import_path=(elsewhere, installation))
    assert_refused(run, ours=installation / foreign, foreign=elsewhere / foreign / "__init__.py")


@pytest.mark.parametrize(("importer", "foreign"), PAIRS)
def test_a_script_with_our_name_is_refused(importer: str, foreign: str, installation: Path, elsewhere: Path) -> None:
    script = elsewhere / f"{foreign}.py"
    script.write_text(f"if __name__ == '__main__':\n    import {importer}\nelse:\n    {_LOUD}")
    run = run_python(
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", import_path=(elsewhere, installation)
    )
    assert_refused(run, ours=installation / foreign, foreign=script)


def test_a_file_that_does_not_compile_is_refused(installation: Path, elsewhere: Path) -> None:
    script = elsewhere / "loader.py"
    script.write_text("print 'for Python 2'\n")
    run = run_python("import client", import_path=(elsewhere, installation))
    assert_refused(run, ours=installation / "loader", foreign=script)


def test_a_package_with_the_mark_of_another_is_refused(installation: Path, elsewhere: Path) -> None:
    shutil.copytree(installation / "client", elsewhere / "loader")
    run = run_python("import client", import_path=(elsewhere, installation))
    assert_refused(run, ours=installation / "loader", foreign=elsewhere / "loader" / "__init__.py")


def test_a_module_made_at_run_time_is_refused(installation: Path) -> None:
    code = "import sys, types; sys.modules['loader'] = types.ModuleType('loader'); import client"
    run = run_python(code, import_path=(installation,))
    assert_refused(run, ours=installation / "loader", foreign=Path("a module made at run time"))


def test_the_error_can_be_caught_by_its_class(installation: Path, elsewhere: Path) -> None:
    (elsewhere / "loader.py").write_text(_LOUD)
    code = """
        import sys
        try:
            import client
        except ImportError:
            raise
        except Exception as error:
            from_us = type(error) is sys.modules["client.errors"].ForeignPackage
            print(from_us, error.key)
    """
    run = run_python("if True:" + code, import_path=(elsewhere, installation))
    assert run.stdout.split() == ["True", "loader"], run.stderr


def test_a_sibling_that_is_not_installed_is_no_error(installation: Path) -> None:
    shutil.rmtree(installation / "storenode")
    run = run_python("import client, loader", import_path=(installation,))
    assert run.returncode == 0, run.stderr


def test_a_folder_without_init_does_not_hide_our_package(installation: Path, elsewhere: Path) -> None:
    (elsewhere / "client").mkdir()
    run = run_python("import loader, client.errors", import_path=(elsewhere, installation))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("importer", NAMES)
def test_this_tree_passes_its_own_check(importer: str, tmp_path: Path) -> None:
    run = run_python(f"import {importer}", import_path=(REPOSITORY,), site=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("importer", "foreign"), PAIRS)
def test_every_package_of_this_tree_asks_before_it_does_anything_else(importer: str, foreign: str, elsewhere: Path) -> None:
    script = elsewhere / f"{foreign}.py"
    script.write_text(_LOUD)
    run = run_python(f"import {importer}", import_path=(elsewhere, REPOSITORY), site=True)
    assert_refused(run, ours=REPOSITORY / foreign, foreign=script)
