"""The chunk store through crashes, power cuts and failed syncs: what is acknowledged is on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from client.checksum import blake3_id
from client.errors import DiskFailed, DiskFull
from tests.support.chunk_files import ID, PAYLOAD, flip_bit, open_store, path_of, quarantined
from tests.support.filesystem import SimulatedCrash, VolatileFileSystem

# --- durability


def test_put_syncs_bytes_before_the_name_and_the_directory_after_it(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    durable = [call for call in fs.calls if call.method in ("write", "sync_data", "link", "sync")]
    assert [call.method for call in durable] == ["write", "write", "sync_data", "link", "sync"]
    assert durable[-1].subject == f"{ID[0]:02x}"


def test_a_repeat_is_rehashed_and_its_directory_synced_before_it_counts(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    inode = path_of(tmp_path).stat().st_ino
    fs.calls.clear()
    assert not store.put(5, ID, PAYLOAD)
    assert path_of(tmp_path).stat().st_ino == inode
    assert fs.methods.count("pread_into") == 2  # the trailer, the payload
    assert fs.methods[-1] == "sync"
    assert "write" not in fs.methods


def test_directories_are_made_once(tmp_path: Path) -> None:
    open_store(tmp_path)
    fs = VolatileFileSystem()
    made = {path.name for path in (tmp_path / "chunks").iterdir()}
    assert made == {f"{first:02x}" for first in range(256)}
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    assert "make_directory" not in fs.methods


def test_an_acknowledged_chunk_survives_a_power_cut(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    store.put(5, ID, PAYLOAD)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_a_repeat_makes_durable_what_another_left_unsynced(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert not store.put(5, ID, PAYLOAD)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_what_is_visible_after_a_start_is_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert open_store(tmp_path, fs).contains(5, ID)
    fs.power_cut()
    assert open_store(tmp_path, fs).verify(5, ID)


def test_a_visible_copy_can_be_made_durable_before_it_is_relied_on(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    fs.calls.clear()
    store.make_durable([ID, ID])
    assert fs.methods.count("sync") == 1
    fs.power_cut()
    assert store.verify(5, ID)


def test_a_copy_whose_sync_failed_can_not_be_made_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    assert store.contains(5, ID)
    with pytest.raises(DiskFailed, match="restart the node"):
        store.make_durable([ID])


def chunks_of_directories(number: int) -> dict[bytes, bytes]:
    """Payloads by id, each of a directory of its own."""
    firsts: dict[int, bytes] = {}
    for each in range(10 * number):
        firsts.setdefault(blake3_id(b"%d" % each)[0], b"%d" % each)
    return {blake3_id(payload): payload for payload in list(firsts.values())[:number]}


def test_names_in_many_directories_are_made_durable_at_once(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    payloads = chunks_of_directories(9)
    for chunk_id, payload in payloads.items():
        fs.fail(SimulatedCrash(), method="sync")
        with pytest.raises(SimulatedCrash):
            store.put(5, chunk_id, payload)
        fs.revive()
    fs.calls.clear()
    store.make_durable(payloads)
    assert (fs.methods.count("sync"), fs.methods.count("sync_everything")) == (0, 1)
    fs.power_cut()
    assert all(store.verify(5, chunk_id) for chunk_id in payloads)


def test_where_syncing_many_directories_fails_none_of_them_takes_writes(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    payloads = chunks_of_directories(9)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync_everything")
    with pytest.raises(DiskFailed):
        store.make_durable(payloads)
    for chunk_id, payload in payloads.items():
        with pytest.raises(DiskFailed, match="restart the node"):
            store.put(5, chunk_id, payload)
    with pytest.raises(DiskFailed, match="restart the node"):
        store.make_durable(payloads)


@pytest.fixture
def num_put_calls(tmp_path_factory: pytest.TempPathFactory) -> int:
    fs = VolatileFileSystem()
    store = open_store(tmp_path_factory.mktemp("counted"), fs)
    fs.calls.clear()
    store.put(5, ID, PAYLOAD)
    return len(fs.calls)


def test_a_crash_at_any_call_leaves_nothing_or_a_sound_copy(tmp_path: Path, num_put_calls: int) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    for at in range(num_put_calls):
        fs.fail(SimulatedCrash(), at=at)
        with pytest.raises(SimulatedCrash):
            store.put(5, ID, PAYLOAD)
        fs.power_cut()
        if store.contains(5, ID):
            assert store.verify(5, ID)
            store.delete(5, ID)
        assert quarantined(tmp_path) == []
    assert store.put(5, ID, PAYLOAD)


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, DiskFailed), (errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull)])
def test_an_error_at_any_call_is_named_and_leaves_nothing_damaged(
    tmp_path: Path, num_put_calls: int, number: int, expected: type[Exception]
) -> None:
    for at in range(num_put_calls):
        fs = VolatileFileSystem()
        store = open_store(tmp_path, fs)
        fs.fail(OSError(number, os.strerror(number)), at=at)
        with pytest.raises(expected, match=rf"{tmp_path}.*errno {number}"):
            store.put(5, ID, PAYLOAD)
        assert quarantined(tmp_path) == []
        again = open_store(tmp_path, fs)
        again.put(5, ID, PAYLOAD)
        assert again.verify(5, ID)
        again.delete(5, ID)


def test_a_failed_sync_of_the_bytes_gives_the_file_up(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.calls.clear()
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync_data")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    assert fs.methods.count("sync_data") == 1
    assert "link" not in fs.methods
    assert store.put(5, ID, PAYLOAD)  # in a file of its own


def test_a_directory_whose_sync_failed_takes_no_chunks_until_the_next_start(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed, match="errno 5"):
        store.put(5, ID, PAYLOAD)
    fs.calls.clear()
    with pytest.raises(DiskFailed, match="restart the node"):
        store.put(5, ID, PAYLOAD)
    assert "sync" not in fs.methods
    other = next(data for data in (b"%d" % n for n in range(100)) if blake3_id(data)[0] != ID[0])
    assert store.put(5, blake3_id(other), other)
    assert not open_store(tmp_path, fs).put(5, ID, PAYLOAD)


# --- touching


def test_touching_counts_only_a_sound_copy_which_can_then_be_made_durable(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    assert not store.touch(5, ID)
    fs.fail(SimulatedCrash(), method="sync")
    with pytest.raises(SimulatedCrash):
        store.put(5, ID, PAYLOAD)
    fs.revive()
    assert store.touch(5, ID)
    store.make_durable([ID])
    fs.power_cut()
    assert store.verify(5, ID)
    flip_bit(path_of(tmp_path), 3)
    assert not store.touch(5, ID)
    assert len(quarantined(tmp_path)) == 1


def test_a_touch_does_not_count_where_a_sync_has_failed(tmp_path: Path) -> None:
    fs = VolatileFileSystem()
    store = open_store(tmp_path, fs)
    fs.fail(OSError(errno.EIO, "I/O error"), method="sync")
    with pytest.raises(DiskFailed):
        store.put(5, ID, PAYLOAD)
    assert store.touch(5, ID)
    with pytest.raises(DiskFailed, match="restart the node"):
        store.make_durable([ID])
