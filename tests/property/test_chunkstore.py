"""The chunk store against a dict: any sequence of calls, with errors, crashes and power cuts at any call, and damage to files.

What `put` acknowledged and nobody damaged is there and sound, whatever happened since. What was damaged is never taken for
sound. What was not acknowledged is there whole, or not at all.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from client.checksum import SEGMENT_BYTES, blake3_id, segment_checks
from client.errors import ChunkCorrupt, ChunkNotFound, DiskFailed, DiskFull
from storenode.chunkstore import ChunkStore
from storenode.trailer import Trailer
from tests.support.filesystem import FAST_DISK, SimulatedCrash, VolatileFileSystem

RANDOM = random.Random(0)
PAYLOADS = {
    blake3_id(payload): payload
    for payload in (b"", b"y" * 9, RANDOM.randbytes(SEGMENT_BYTES + 1), RANDOM.randbytes(3 * SEGMENT_BYTES))
}
Chunk = tuple[int, bytes]
CHUNKS = [(0, chunk_id) for chunk_id in PAYLOADS] + [(1, max(PAYLOADS))]

chunks = st.sampled_from(CHUNKS)
places = st.floats(0, 1, exclude_max=True)
faults = st.sampled_from([errno.EIO, errno.ENOSPC, None])  # None: the process crashes


class ChunkStoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=FAST_DISK))
        self.fs = VolatileFileSystem()
        # Acknowledged and untouched; damaged on the disk; possibly there, because a call failed or a deletion came undone.
        self.sound: set[Chunk] = set()
        self.damaged: set[Chunk] = set()
        self.possible: set[Chunk] = set()
        # Directories whose fsync failed since the last start.
        self.refusing: set[int] = set()

    @initialize()
    def open(self) -> None:
        self.store = ChunkStore(self.root, reserve_bytes=0, max_chunk_bytes=1 << 20, fs=self.fs)

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def path(self, chunk: Chunk) -> Path:
        return self.root / "chunks" / f"{chunk[1][0]:02x}" / f"{chunk[0]:08x}-{chunk[1].hex()}"

    @rule(chunk=chunks)
    def put(self, chunk: Chunk) -> None:
        if chunk[1][0] in self.refusing:
            with pytest.raises(DiskFailed, match="restart"):
                self.store.put(*chunk, PAYLOADS[chunk[1]])
            return
        created = self.store.put(*chunk, PAYLOADS[chunk[1]])
        assert created or chunk in self.sound | self.possible
        assert not (created and chunk in self.sound)
        self.acknowledged(chunk)

    @rule(chunk=chunks, at=st.integers(0, 16), fault=faults, power=st.booleans())
    def put_with_a_fault(self, chunk: Chunk, at: int, fault: int | None, power: bool) -> None:
        self.fs.fail(SimulatedCrash() if fault is None else OSError(fault, os.strerror(fault)), at=at)
        num_calls = len(self.fs.calls)
        try:
            self.store.put(*chunk, PAYLOADS[chunk[1]])
            self.acknowledged(chunk)
        except (DiskFailed, DiskFull, SimulatedCrash):
            if chunk not in self.sound:
                self.possible.add(chunk)
            if fault is not None and self.fs.methods[num_calls:][-1:] == ["sync"]:
                self.refusing.add(chunk[1][0])
        self.fs.revive()
        if fault is None:
            self.restart(power)
        self.look_at(chunk)

    @rule(group=st.lists(chunks, min_size=1, unique=True))
    def put_group(self, group: list[Chunk]) -> None:
        errors = self.store.put_group([(*chunk, PAYLOADS[chunk[1]]) for chunk in group])
        for chunk, error in zip(group, errors, strict=True):
            assert isinstance(error, DiskFailed) == (chunk[1][0] in self.refusing)
            if error is None:
                self.acknowledged(chunk)

    @rule(group=st.lists(chunks, min_size=1, unique=True), at=st.integers(0, 40), fault=faults, power=st.booleans())
    def put_group_with_a_fault(self, group: list[Chunk], at: int, fault: int | None, power: bool) -> None:
        self.fs.fail(SimulatedCrash() if fault is None else OSError(fault, os.strerror(fault)), at=at)
        num_calls = len(self.fs.calls)
        errors: list[Exception | None] = [DiskFailed("the whole group")] * len(group)
        with suppress(DiskFailed, DiskFull, SimulatedCrash):
            errors = list(self.store.put_group([(*chunk, PAYLOADS[chunk[1]]) for chunk in group]))
        for chunk, error in zip(group, errors, strict=True):
            if error is None:
                self.acknowledged(chunk)
            elif chunk not in self.sound:
                self.possible.add(chunk)
        made = self.fs.methods[num_calls:]
        at_the_names = "link" in made[:at] or "create_unnamed" not in made[:at]
        if fault is not None and made[at : at + 1] == ["sync_everything"] and at_the_names:
            self.refusing.update(chunk[1][0] for chunk in group)
        self.fs.revive()
        if fault is None:
            self.restart(power)
        for chunk in group:
            self.look_at(chunk)

    @rule(power=st.booleans())
    def restart(self, power: bool) -> None:
        if power:
            self.fs.power_cut()
        self.refusing.clear()
        self.open()
        for chunk in self.possible:
            self.look_at(chunk)

    @rule(chunk=chunks, at=places, how=st.sampled_from(["flip", "cut", "grow", "swap"]))
    def damage(self, chunk: Chunk, at: float, how: str) -> None:
        path = self.path(chunk)
        if chunk not in self.sound:
            return
        size = path.stat().st_size
        place = int(at * size)
        if how == "cut":
            os.truncate(path, place)
        elif how == "grow":
            os.truncate(path, size + 1 + place)
        elif how == "flip":
            data = bytearray(path.read_bytes())
            data[place] ^= 0x10
            path.write_bytes(data)
        else:
            others = sorted(other for other in self.sound if other != chunk)
            if not others:
                return
            path.write_bytes(self.path(others[place % len(others)]).read_bytes())
        self.sound.remove(chunk)
        self.damaged.add(chunk)

    @rule(chunk=chunks)
    def verify(self, chunk: Chunk) -> None:
        if chunk in self.sound:
            assert self.store.verify(*chunk) == len(PAYLOADS[chunk[1]])
        elif chunk in self.damaged:
            with pytest.raises(ChunkCorrupt):
                self.store.verify(*chunk)
        else:
            with suppress(ChunkNotFound):
                assert self.store.verify(*chunk) == len(PAYLOADS[chunk[1]])
                assert chunk in self.possible

    @rule(chunk=chunks, at=places)
    def read(self, chunk: Chunk, at: float) -> None:
        """As a reader of a range does: what the segment's checksum covers is right, or it is seen."""
        payload = PAYLOADS[chunk[1]]
        try:
            with self.store.open_chunk(*chunk) as opened:
                assert opened.size == len(payload)
                segment = int(at * -(-len(payload) // SEGMENT_BYTES))
                expected = payload[segment * SEGMENT_BYTES :][:SEGMENT_BYTES]
                buffer = bytearray(len(expected))
                opened.pread_into(buffer, offset=segment * SEGMENT_BYTES)
                if chunk in self.damaged:
                    trusted = segment_checks(buffer) == opened.segment_checks(segment, segment + bool(payload))
                    assert trusted == (buffer == expected)
                else:
                    assert buffer == expected
        except ChunkCorrupt:
            assert chunk in self.damaged
        except ChunkNotFound:
            assert chunk not in self.sound | self.damaged

    @rule(chunk=chunks)
    def quarantine(self, chunk: Chunk) -> None:
        assert self.store.quarantine(*chunk) == (chunk in self.damaged)
        if chunk in self.damaged:
            self.damaged.remove(chunk)
            # The rename is not synced, so a power cut may bring the bad copy back.
            self.possible.add(chunk)

    @rule(chunk=chunks)
    def delete(self, chunk: Chunk) -> None:
        deleted = self.store.delete(*chunk)
        assert deleted or chunk not in self.sound | self.damaged
        self.sound.discard(chunk)
        self.damaged.discard(chunk)
        if deleted:
            self.possible.add(chunk)

    @invariant()
    def scan_finds_all_that_is_there(self) -> None:
        found = list(self.store.scan())
        assert found == sorted(found, key=lambda chunk: (chunk[1][0], *chunk))
        assert self.sound | self.damaged <= set(found) <= self.sound | self.damaged | self.possible

    def acknowledged(self, chunk: Chunk) -> None:
        self.sound.add(chunk)
        self.damaged.discard(chunk)
        self.possible.discard(chunk)

    def look_at(self, chunk: Chunk) -> None:
        """Settle from the disk whether what may be there is damaged; for what must be sound this changes nothing."""
        path = self.path(chunk)
        whole = PAYLOADS[chunk[1]] + Trailer.of(PAYLOADS[chunk[1]], partition=chunk[0], chunk_id=chunk[1]).encode()
        if chunk in self.possible and path.exists() and path.read_bytes() != whole:
            self.damaged.add(chunk)
        else:
            self.damaged.discard(chunk)


TestChunkStoreMachine = ChunkStoreMachine.TestCase
# Each start makes and syncs 256 directories, so a quarter of the examples takes the time of other tests.
TestChunkStoreMachine.settings = settings(max_examples=settings().max_examples // 4, stateful_step_count=40)
