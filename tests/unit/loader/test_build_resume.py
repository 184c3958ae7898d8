"""A build that was killed goes on: the same dataset as without, each row once, and nothing left of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.errors import Forbidden
from client.manifest import Ref
from loader import build as build_module
from loader import build_journal, source_jsonl, source_numpy
from loader.build import build_dataset
from loader.build_journal import BUILDS_PREFIX
from loader.errors import BuildUnresumable
from loader.reader import DatasetReader
from loader.verify import verify_dataset
from tests.support.fake_store import FakeCatalog, FakeStore
from tests.unit.loader.watched_store import WatchedChunks, watched_store

URL = "forebay://data/sets/rows"


class Killed(BaseException):
    """As a kill, it is no error that anybody handles."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "PART_BYTES", 20_000)
    monkeypatch.setattr(source_numpy, "PIECE_ROWS", 250)
    monkeypatch.setattr(source_jsonl, "PIECE_BYTES", 5000)
    monkeypatch.setattr(source_jsonl, "_READ_BYTES", 5000)
    monkeypatch.setattr("loader.staging.MIN_CHUNK_BYTES", 2000)
    monkeypatch.setattr("loader.staging.LANE_CHUNKS_BYTES", 8000)
    monkeypatch.setattr("loader.lanes.DEAL_BYTES", 10_000)
    monkeypatch.setattr("loader.writer.DEAL_BYTES", 10_000)


@pytest.fixture
def store() -> Iterator[tuple[FakeStore, FakeCatalog, WatchedChunks]]:
    with watched_store() as opened:
        yield opened


@pytest.fixture(params=["npy", "jsonl"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    if request.param == "npy":
        path = tmp_path / "n.npy"
        np.save(path, rng.integers(0, 1 << 60, (20_000, 2)))
    else:
        path = tmp_path / "rows.jsonl"
        lengths = rng.integers(0, 60, 6000)
        path.write_text("".join(f'{{"n": {n}, "t": "{rng.bytes(length).hex()}"}}\n' for n, length in enumerate(lengths)))
    return path


def build(path: Path, store: FakeStore, *, resume: bool = True, url: str = URL) -> build_module.BuildResult:
    return build_dataset([path], url, compression="none", block_size_bytes=1500, num_lanes=8, client=store, resume=resume)


def parts_of(catalog: FakeCatalog) -> list[str]:
    return sorted(key for (_, key), versions in catalog.history.items() if key.startswith(BUILDS_PREFIX) and versions)


def kill_after(chunks: WatchedChunks, num_puts: int) -> None:
    left = iter(range(num_puts))

    def before_put(ref: Ref) -> None:
        if next(left, None) is None:
            raise Killed

    chunks.before_put = before_put


def spare(chunks: WatchedChunks) -> None:
    chunks.before_put = lambda ref: None


@pytest.mark.parametrize("kills", [(100,), (60, 60, 60), (100, 3, 100)])
def test_a_killed_build_goes_on_to_the_same_dataset(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks], kills: tuple[int, ...]
) -> None:
    fake, catalog, chunks = store
    whole = build(rows, fake, resume=False, url="forebay://data/whole")
    whole_puts = len(chunks.put_sizes)
    for num_puts in kills:
        kill_after(chunks, num_puts)
        with pytest.raises(Killed):
            build(rows, fake)
        assert ("data", "sets/rows") not in catalog.history
    assert parts_of(catalog)
    spare(chunks)
    puts = len(chunks.put_sizes)
    result = build(rows, fake)
    assert len(chunks.put_sizes) - puts < whole_puts  # By how much depends on which thread was how far when it was killed.
    assert result.resumed_rows > 0
    assert (result.index.digest, result.index.num_rows) == (whole.index.digest, whole.index.num_rows)
    assert verify_dataset(DatasetReader(fake, "data", "sets/rows")).clean
    assert parts_of(catalog) == []


def test_without_resume_nothing_is_left_and_nothing_taken_up(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks]
) -> None:
    fake, catalog, chunks = store
    kill_after(chunks, 100)
    with pytest.raises(Killed):
        build(rows, fake, resume=False)
    assert not catalog.history
    spare(chunks)
    assert build(rows, fake).resumed_rows == 0


def test_another_input_begins_anew(rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks]) -> None:
    fake, catalog, chunks = store
    kill_after(chunks, 100)
    with pytest.raises(Killed):
        build(rows, fake)
    spare(chunks)
    rows.touch()
    assert build(rows, fake).resumed_rows == 0
    assert parts_of(catalog)  # of the first, until they are too old
    assert build_journal.remove_expired(fake, "data", now_s=catalog_time(catalog) + build_journal.KEPT_S - 1) == 0
    assert build_journal.remove_expired(fake, "data", now_s=catalog_time(catalog) + build_journal.KEPT_S + 1) > 0
    assert parts_of(catalog) == []


def catalog_time(catalog: FakeCatalog) -> float:
    return max(catalog.history["data", key][0].record.created_s for key in parts_of(catalog))


def test_two_builds_that_go_on_from_one_point_do_not_mix(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, catalog, chunks = store
    load = build_journal.BuildJournal.load

    def another_meanwhile(journal: build_journal.BuildJournal) -> build_journal.Left | None:
        left = load(journal)
        monkeypatch.setattr(build_journal.BuildJournal, "load", load)
        kill_after(chunks, 100)
        with pytest.raises(Killed):
            build(rows, fake)
        spare(chunks)
        return left

    monkeypatch.setattr(build_journal.BuildJournal, "load", another_meanwhile)
    with pytest.raises(BuildUnresumable, match="under way elsewhere"):
        build(rows, fake)
    assert ("data", "sets/rows") not in catalog.history


@pytest.mark.parametrize("damage", ["missing", "other pieces"])
def test_what_can_not_be_taken_up_is_said(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    fake, catalog, chunks = store
    kill_after(chunks, 150)
    with pytest.raises(Killed):
        build(rows, fake)
    spare(chunks)
    words = "is missing; `forebay rm -r"
    if damage == "missing":
        fake.delete("data", parts_of(catalog)[0])
    else:
        words = "was that another version"
        monkeypatch.setattr(source_numpy, "PIECE_ROWS", 249)
        monkeypatch.setattr(source_jsonl, "_READ_BYTES", 4000)
        monkeypatch.setattr(source_jsonl, "PIECE_BYTES", 4000)
    with pytest.raises(BuildUnresumable, match=words):
        build(rows, fake)


def test_a_token_that_may_only_write_builds(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise Forbidden("this token may not list")

    fake, catalog, _ = store
    monkeypatch.setattr(catalog, "list", refuse)
    assert build(rows, fake, resume=False).index.num_rows > 0
    with pytest.raises(Forbidden):
        build(rows, fake, resume=True)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_the_dataset_does_not_depend_on_the_number_of_workers(
    rows: Path, store: tuple[FakeStore, FakeCatalog, WatchedChunks], num_workers: int
) -> None:
    fake, _, _ = store
    whole = build(rows, fake)
    again = build_dataset(
        [rows], URL, compression="none", block_size_bytes=1500, num_lanes=8, client=fake, num_workers=num_workers
    )
    assert again.index.digest == whole.index.digest
