"""One node, one directory: the id is minted once, and a second process or another cluster is kept out."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.errors import DiskFailed, DiskFull, Misconfigured
from storenode.identity import claim, cluster_of
from tests.support.filesystem import ScriptedFileSystem, SimulatedCrash, VolatileFileSystem

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_id_is_minted_once_and_kept(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with claim(root, cluster_id="c1") as first:
        assert len(first.node_id) == 16
        assert (first.root, first.cluster_id) == (root, "c1")
    with claim(root, cluster_id="c1") as again:
        assert again.node_id == first.node_id


def test_a_directory_tells_its_cluster_without_being_claimed(tmp_path: Path) -> None:
    assert cluster_of(tmp_path / "nowhere") is None and cluster_of(tmp_path) is None
    assert not (tmp_path / "nowhere").exists()
    with claim(tmp_path, cluster_id="c1"):
        assert cluster_of(tmp_path) == "c1"
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="can't be used: Not a directory"):
        cluster_of(tmp_path / "file")


def test_two_directories_have_two_ids(tmp_path: Path) -> None:
    with claim(tmp_path / "a", cluster_id="c") as a, claim(tmp_path / "b", cluster_id="c") as b:
        assert a.node_id != b.node_id


def test_a_held_directory_is_refused_and_named(tmp_path: Path) -> None:
    with claim(tmp_path, cluster_id="c"), pytest.raises(Misconfigured, match="held by another process") as caught:
        claim(tmp_path, cluster_id="c")
    assert str(tmp_path) in caught.value.message


def test_a_directory_held_by_another_process_is_free_once_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from storenode.identity import claim\n"
        "held = claim(Path(sys.argv[1]), cluster_id='c'); print(held.node_id, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        node_id = process.stdout.readline().strip()
        with pytest.raises(Misconfigured, match="held by another process"):
            claim(tmp_path, cluster_id="c")
        process.kill()
        process.wait()
    with claim(tmp_path, cluster_id="c") as held:
        assert held.node_id == node_id


def test_a_directory_of_another_cluster_is_refused_and_unharmed(tmp_path: Path) -> None:
    with claim(tmp_path, cluster_id="mine") as first:
        pass
    with pytest.raises(Misconfigured, match=r"belongs to cluster 'mine'.*started for 'other'"):
        claim(tmp_path, cluster_id="other")
    with claim(tmp_path, cluster_id="mine") as again:
        assert again.node_id == first.node_id


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "x", "node_id": "a", "cluster_id": "c"}', "\xff"])
def test_a_damaged_identity_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text, encoding="latin-1")
    with pytest.raises(Misconfigured, match="holds no node identity"):
        claim(tmp_path, cluster_id="c")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"format": 2, "node_id": "a" * 16, "cluster_id": "c"}))
    with pytest.raises(Misconfigured, match="format 2, and this program knows 1"):
        claim(tmp_path, cluster_id="c")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(Misconfigured, match="can't be used: Not a directory"):
        claim(path, cluster_id="c")


def test_new_directories_are_durable_before_the_id_is_told(tmp_path: Path) -> None:
    fs = ScriptedFileSystem()
    with claim(tmp_path / "a" / "b", cluster_id="c", fs=fs):
        synced = [call.subject for call in fs.calls if call.method == "sync"]
    assert synced == [tmp_path.name, "a", "b"]
    assert fs.methods.index("sync_data") < fs.methods.index("link") < len(fs.methods) - 1
    assert fs.methods[-1] == "sync"


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, DiskFailed), (errno.ENOSPC, DiskFull)])
def test_any_failing_call_leaves_a_directory_that_the_next_start_can_claim(
    tmp_path: Path, number: int, expected: type[Exception]
) -> None:
    fs = ScriptedFileSystem()
    with claim(tmp_path / "counted", cluster_id="c", fs=fs):
        num_calls = len(fs.calls)
    for at in range(num_calls):
        root, fs = tmp_path / str(at), ScriptedFileSystem()
        fs.fail(OSError(number, os.strerror(number)), at=at)
        with pytest.raises(expected):
            claim(root, cluster_id="c", fs=fs)
        claim(root, cluster_id="c").close()


def test_a_node_that_told_its_id_has_it_after_a_power_cut(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    with claim(tmp_path, cluster_id="c", fs=fs) as told:
        pass
    fs.power_cut()
    with claim(tmp_path, cluster_id="c", fs=fs) as again:
        assert again.node_id == told.node_id


def test_an_id_that_a_crash_left_unsynced_is_synced_by_the_next_start(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        claim(tmp_path, cluster_id="c", fs=fs)
    fs.revive()
    with claim(tmp_path, cluster_id="c", fs=fs) as told:
        pass
    fs.power_cut()
    with claim(tmp_path, cluster_id="c", fs=fs) as again:
        assert again.node_id == told.node_id
