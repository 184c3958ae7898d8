"""Global options, failures and exit codes of the command line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.cli import connection
from client.cli.app import build_app
from client.cli.plugins import load_plugins
from client.errors import BucketNotFound, CursorExpired
from tests.support.fake_store import FakeStore
from tests.unit.client.cli.conftest import Forebay

REPOSITORY = Path(__file__).resolve().parents[4]


def test_without_a_command_it_shows_the_help(forebay: Forebay) -> None:
    assert "bucket" in forebay().out
    assert forebay("--help").out.strip() == forebay().out.strip()


def test_every_command_has_help(forebay: Forebay) -> None:
    commands = "put get sync cat cp mv rm ls stat du replicate verify scrub".split()
    groups = {
        "bucket": "create ls set rm",
        "cluster": "status layout",
        "job": "ls watch cancel",
        "node": "ls add drain remove weight zone",
    }
    for command in [[name] for name in commands] + [[g, name] for g, names in groups.items() for name in names.split()]:
        shown = forebay(*command, "--help").out
        assert "Usage: forebay " + " ".join(command) in shown
        assert command == ["cat"] or "--json" in shown


def test_version(forebay: Forebay) -> None:
    assert forebay("--version").out.startswith("forebay")


def test_a_usage_error_exits_with_2_and_says_where_the_help_is(forebay: Forebay) -> None:
    ran = forebay("put", code=2)
    assert ran.out == ""
    assert ran.err.splitlines() == ["error: Missing argument 'SRC'.", "hint: `forebay put --help` shows how it is used"]


def test_an_unknown_command_exits_with_2_and_suggests_the_one_that_was_meant(forebay: Forebay) -> None:
    ran = forebay("stats", code=2)
    assert ran.err.startswith("error: No such command 'stats'. Did you mean 'stat'")


def test_a_group_without_its_command_exits_with_2(forebay: Forebay) -> None:
    assert forebay("bucket", code=2).err.startswith("error: Missing command.")


def test_a_store_error_exits_with_1_and_says_what_to_type_next(forebay: Forebay) -> None:
    ran = forebay("stat", "demo/key", code=1)
    assert ran.out == ""
    assert ran.err == "error: no bucket 'demo'; `forebay bucket create demo` creates it\n"


def test_a_hint_is_added_where_the_message_names_no_command(forebay: Forebay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise BucketNotFound("nothing of that name", key="demo/key")

    monkeypatch.setattr(FakeStore, "stat", fail)
    assert forebay("stat", "demo/key", code=1).err.splitlines() == [
        "error: nothing of that name",
        "hint: `forebay bucket create demo` creates it",
    ]


def test_a_wrong_name_is_told_before_anything_is_contacted(forebay: Forebay) -> None:
    assert "use 3 to 63 of a-z" in forebay("ls", "No_Bucket", code=1).err
    assert "between two slashes" in forebay("ls", "demo//key", code=1).err


def test_a_defect_is_called_one_and_verbose_shows_where(forebay: Forebay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("one by nothing")

    monkeypatch.setattr(FakeStore, "stat", fail)
    ran = forebay("stat", "demo/key", code=1)
    assert ran.err.startswith("error: unexpected ZeroDivisionError: one by nothing\nhint: this is a defect")
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    loud = forebay("--verbose", "stat", "demo/key", code=1)
    assert "Traceback" in loud.err
    assert "in fail" in loud.err
    assert "Traceback" not in ran.err


def test_a_file_error_names_the_file(forebay: Forebay, store: FakeStore, tmp_path: Path) -> None:
    store.buckets.create("demo")
    missing = tmp_path / "missing"
    assert forebay("put", str(missing), "demo/key", code=1).err == f"error: {missing}: No such file or directory\n"


def test_a_missing_package_is_named_with_what_installs_it(forebay: Forebay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(FakeStore, "stat", fail)
    assert forebay("stat", "demo/key", code=1).err.endswith('hint: pip install "forebay[loader]"\n')


def test_an_interrupt_exits_with_130_and_no_traceback(forebay: Forebay, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeStore, "stat", interrupt)
    assert "Traceback" not in forebay("stat", "demo/key", code=130).err


def test_errors_with_a_hint_of_their_own_class(forebay: Forebay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise CursorExpired("the listing's revision is gone")

    monkeypatch.setattr(FakeStore, "list", fail)
    assert "run the command again" in forebay("ls", "demo", code=1).err


def test_endpoints_are_given_again_or_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def client(endpoints: object, *, token: object, profile: object) -> object:
        asked.append((endpoints, token, profile))
        raise BucketNotFound("enough seen")

    monkeypatch.setattr(connection, "Client", client)
    run = CliRunner().invoke
    run(build_app(), ["ls"])
    run(
        build_app(), ["--endpoint", "http://a:1,http://b:2", "--endpoint", "http://c:3", "--token", "t", "--profile", "p", "ls"]
    )
    assert asked == [(None, None, None), (["http://a:1", "http://b:2", "http://c:3"], "t", "p")]


# Commands of other packages


def _plugin(name: str, target: str) -> EntryPoint:
    return EntryPoint(name=name, value=f"{__name__}:{target}", group="forebay.commands")


def register_greeting(app: typer.Typer) -> None:
    @app.command("greet")
    def greet() -> None:
        print("hello")


def register_without_torch(app: typer.Typer) -> None:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def register_broken(app: typer.Typer) -> None:
    raise SyntaxError("half a file")


def _app_with(*plugins: EntryPoint, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setattr("client.cli.app.load_plugins", lambda app: load_plugins(app, plugins))
    return build_app()


def test_a_plugin_adds_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _app_with(_plugin("greeting", "register_greeting"), monkeypatch=monkeypatch)
    assert CliRunner().invoke(app, ["greet"]).stdout == "hello\n"


def test_a_plugin_that_fails_breaks_nothing_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _app_with(
        _plugin("loader", "register_without_torch"),
        _plugin("other", "register_broken"),
        _plugin("then", "register_greeting"),
        monkeypatch=monkeypatch,
    )
    run = CliRunner().invoke
    assert run(app, ["greet"]).stdout == "hello\n"
    failed = run(app, ["loader", "build", "--whatever"])
    assert failed.exit_code == 1
    assert failed.stderr.splitlines() == [
        "error: the commands of the package 'loader' can't be loaded: ModuleNotFoundError: No module named 'torch'",
        'hint: pip install "forebay[loader]"',
    ]
    broken = run(app, ["other"])
    assert "SyntaxError: half a file" in broken.stderr
    assert "pip install" in broken.stderr
    assert "Not available" in run(app, ["--help"]).stdout


def test_a_command_of_a_plugin_that_failed_is_missed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _app_with(_plugin("loader", "register_without_torch"), monkeypatch=monkeypatch)
    missed = CliRunner().invoke(app, ["dataset", "build"])
    assert missed.exit_code == 2
    assert "No such command 'dataset'" in missed.stderr
    assert "hint: `forebay loader` says why" in missed.stderr


# As a process


def test_help_needs_no_heavy_package() -> None:
    heavy = "{'torch', 'fastapi', 'uvicorn', 'pyarrow', 'numpy', 'rich.progress'}"
    code = f"import sys; from client.cli.app import build_app; build_app(); print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "set()\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "client.cli", "--help"]
        ran = subprocess.run(command, cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert ran.stderr == ""
