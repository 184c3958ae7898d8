"""Damage to chunk files is remembered until each of them is right again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from client.checksum import blake3_id
from storenode.trailer import Trailer
from tests.soak.disks import Disk


def write_chunk(root: Path, payload: bytes) -> Path:
    chunk_id = blake3_id(payload)
    path = root / "chunks" / chunk_id.hex()[:2] / f"{5:08x}-{chunk_id.hex()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload + Trailer.of(payload, partition=5, chunk_id=chunk_id).encode())
    return path


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_damaged_files_are_known_until_they_are_right_again(tmp_path: Path, kind: str) -> None:
    payloads = {write_chunk(tmp_path, payload): payload for payload in (b"a" * 1000, b"b" * 70_000, b"c")}
    for seed in range(30):  # in the payload, in the trailer
        disk = Disk(root=tmp_path, own=False)
        assert disk.damage(kind, random.Random(seed), num_files=2) == 2
        assert len(disk.still_damaged()) == 2
        first, second = sorted(disk.damaged)
        write_chunk(tmp_path, payloads[first])
        assert disk.still_damaged() == {second}
        second.unlink()
        assert disk.still_damaged() == {second}, "a copy that was set aside is not replaced yet"
        write_chunk(tmp_path, payloads[second])
        assert disk.still_damaged() == set()


def test_a_wiped_disk_is_damaged_until_its_files_are_back(tmp_path: Path) -> None:
    first, second = write_chunk(tmp_path, b"a"), write_chunk(tmp_path, b"b")
    disk = Disk(root=tmp_path, own=False)
    assert disk.wipe() == 2
    assert disk.still_damaged() == {first, second}
    write_chunk(tmp_path, b"a")
    assert disk.still_damaged() == {second}


def test_what_nobody_refers_to_is_forgotten(tmp_path: Path) -> None:
    path = write_chunk(tmp_path, b"a")
    disk = Disk(root=tmp_path, own=False)
    disk.damage("cut", random.Random(1), num_files=20)
    disk.forgive(path)
    assert disk.still_damaged() == set()
