"""Series of objects, their names, what pruning leaves, and what two members differ in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from client.cli.app import build_app
from client.errors import ObjectNotFound
from loader import TensorReader, save_tensors
from loader.errors import InvalidOption
from loader.series import Series
from loader.tensors import compare
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import watched_store

URL = "forebay://data/run"
MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[FakeStore]:
    with watched_store(chunk_size_bytes=2 * MIB) as (store, _, _):
        yield store


@pytest.fixture
def series(store: FakeStore) -> Series:
    series = Series(URL, client=store)
    for step in range(0, 100, 10):
        save_tensors(series.url_of(step), {"step": torch.tensor(step)}, client=store)
    store.put("data", "run/step-x", b"no member")
    store.put("data", "run2/step-000000000001", b"of another series")
    return series


def steps(series: Series) -> list[int]:
    return [member.step for member in series.members()]


def test_members_come_in_order_with_their_names(series: Series) -> None:
    assert steps(series) == list(range(0, 100, 10))
    series.publish(40)
    series.publish(40, name="best")
    names = {member.step: member.names for member in series.members()}
    assert names[40] == ("best", "current") and names[50] == ()
    latest = series.latest()
    assert latest is not None and latest.step == 90
    assert Series("forebay://data/none", client=series._store).latest() is None


def test_pruning_keeps_the_last_every_kth_and_what_has_a_name(series: Series, store: FakeStore) -> None:
    series.publish(20, name="best")
    assert [member.step for member in series.prune(keep_last=2, keep_every=30, dry_run=True)] == [10, 20, 40, 50, 70]
    assert len(steps(series)) == 10
    assert [member.step for member in series.prune(keep_last=2, keep_every=30)] == [10, 20, 40, 50, 70]
    assert steps(series) == [0, 30, 60, 80, 90]
    with TensorReader(series.url_of_name("best"), client=store) as reader:
        assert reader["step"] == 20
    series.withdraw("best")
    with pytest.raises(ObjectNotFound):
        series.withdraw("best")
    assert series.prune(keep_last=100) == []


def test_a_step_that_was_saved_anew_is_not_pruned(series: Series, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    members = series.members()
    save_tensors(series.url_of(10), {"step": torch.tensor(11)}, client=store)
    monkeypatch.setattr(series, "members", lambda: members)
    assert [member.step for member in series.prune(keep_last=8)] == [0]


@pytest.mark.parametrize("name", ["", "a/b", "step-000000000001"])
def test_what_can_be_no_name_is_refused(series: Series, name: str) -> None:
    with pytest.raises(InvalidOption):
        series.publish(10, name=name)


def test_steps_and_numbers_out_of_range_are_refused(series: Series) -> None:
    for step in (-1, 10**12):
        with pytest.raises(InvalidOption):
            series.url_of(step)
    with pytest.raises(InvalidOption):
        series.prune(keep_last=0)
    with pytest.raises(ObjectNotFound):
        series.publish(11)


def test_differences_are_told_by_chunks_and_else_by_bytes(store: FakeStore) -> None:
    old = {
        "large": torch.randn(MIB),
        "other": torch.randn(MIB),
        "small": torch.randn(10),
        "tiny": torch.randn(3),
        "gone": torch.zeros(1),
    }
    new = {**old, "other": torch.randn(MIB), "tiny": torch.randn(3), "new": torch.randn(5), "tied": old["large"]}
    del new["gone"]
    save_tensors(f"{URL}/a", old, client=store)
    save_tensors(f"{URL}/b", new, client=store)
    with TensorReader(f"{URL}/a", client=store) as before, TensorReader(f"{URL}/b", client=store) as after:
        found = compare(before, after)
    assert (found.added, found.removed, found.changed, found.same) == (
        ("new", "tied"),
        ("gone",),
        ("other", "tiny"),
        ("large", "small"),
    )
    assert found.changed_bytes == 4 * (5 + MIB + MIB + 3)
    assert 4 * MIB < found.new_bytes < 4 * MIB + 8192
    # The same tensors in a file that was cut otherwise.
    store.put("data", "run/c", store.get("data", "run/b"))
    with TensorReader(f"{URL}/b", client=store) as before, TensorReader(f"{URL}/c", client=store) as after:
        found = compare(before, after)
    assert not found.changed and not found.added and not found.removed


@pytest.fixture
def forebay(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run a command line against `store`."""
    monkeypatch.setattr("client.cli.connection.Client", lambda *args, **options: store)
    monkeypatch.setattr(store, "close", lambda: None)

    def run(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(build_app(), args, prog_name="forebay")
        assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}"
        return result

    yield run
    monkeypatch.undo()


def test_the_command_line_lists_gets_and_compares_tensors(
    forebay: Callable[..., Result], store: FakeStore, tmp_path: Path
) -> None:
    table = torch.randn(4, 3)
    save_tensors(
        f"{URL}/a", {"x": table, "tied": table, "h": torch.ones(2, dtype=torch.bfloat16)}, metadata={"k": "v"}, client=store
    )
    rows = [json.loads(line) for line in forebay("tensors", "ls", "data/run/a", "--json").stdout.splitlines()]
    assert [(row["name"], row["dtype"], row["shape"], row["tied_to"]) for row in rows] == [
        ("h", "bfloat16", [2], None),
        ("tied", "float32", [4, 3], None),
        ("x", "float32", [4, 3], "tied"),
    ]
    assert forebay("tensors", "ls", "data/run/a").stdout.splitlines()[0].split("\t")[:4] == ["h", "bfloat16", "2", "4"]
    forebay("tensors", "get", "data/run/a", "x", str(tmp_path / "x.npy"))
    assert np.array_equal(np.load(tmp_path / "x.npy"), table.numpy())
    forebay("tensors", "get", "data/run/a", "h", str(tmp_path / "h"))
    assert np.load(tmp_path / "h").shape == (2, 2)
    assert "no 'y'" in forebay("tensors", "get", "data/run/a", "y", str(tmp_path / "y"), code=1).stderr
    save_tensors(f"{URL}/b", {"x": table + 1}, client=store)
    found = json.loads(forebay("tensors", "diff", "data/run/a", "data/run/b", "--json").stdout)
    assert (found["changed"], found["removed"], found["added"]) == (["x"], ["h", "tied"], [])
    assert "changed\tx" in forebay("tensors", "diff", "data/run/a", "data/run/b").stdout


def test_the_command_line_names_and_prunes_steps(forebay: Callable[..., Result], series: Series) -> None:
    forebay("series", "publish", "data/run", "40")
    forebay("series", "publish", "forebay://data/run", "50", "best")
    shown = forebay("series", "prune", "data/run", "--keep-last", "2", "--dry-run")
    assert len(shown.stdout.splitlines()) == 8 and "8 steps would be removed" in shown.stderr
    forebay("series", "prune", "data/run", "--keep-last", "6")
    rows = [json.loads(line) for line in forebay("series", "ls", "data/run", "--json").stdout.splitlines()]
    assert [(row["step"], row["names"]) for row in rows[:3]] == [(40, ["current"]), (50, ["best"]), (60, [])]
    forebay("series", "withdraw", "data/run", "best")


def test_a_watch_tells_what_a_name_means_now_and_whenever_that_changes(series: Series) -> None:
    series.publish(40)
    watch = series.watch()
    now = next(watch)
    assert now is not None and now.record.content.digest == series.members()[4].info.record.content.digest
    series.publish(50, name="best")
    series.publish(60)
    then = next(watch)
    assert then is not None and then.record.content.digest == series.members()[6].info.record.content.digest
