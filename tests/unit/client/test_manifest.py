"""References and manifests: their bytes, and that nothing else decodes."""

from __future__ import annotations

import json
import os

import pytest

from client.checksum import xxh3
from client.errors import MetadataCorrupt
from client.manifest import REF_BYTES, Entry, Manifest, Ref, make_ref
from client.placement import partition_of
from tests.golden.contract import DATA, FOLDER, LEAF, ROOT, manifest_vectors


def signed(body: bytes) -> bytes:
    """An encoded manifest with a checksum that fits it."""
    return body + xxh3(body).to_bytes(8, "little")


def test_bytes_are_what_they_were_when_data_was_written() -> None:
    golden = json.loads((FOLDER / "manifest.json").read_text())
    assert manifest_vectors() == golden
    assert Manifest.decode(bytes.fromhex(golden["leaf_hex"])) == LEAF
    assert Manifest.decode(bytes.fromhex(golden["root_hex"])) == ROOT
    assert [Ref.unpack(bytes.fromhex(case["packed_hex"])) for case in golden["references"]] == list(DATA)


def test_a_reference_is_partition_size_id_check_in_little_endian() -> None:
    ref = Ref(partition=0x01020304, id=bytes(range(32)), size=0x05060708, check=0x1112131415161718)
    expected = bytes.fromhex("04030201" + "08070605") + bytes(range(32)) + bytes.fromhex("1817161514131211")
    assert ref.pack() == expected
    assert Ref.unpack(bytearray(expected)) == ref
    assert REF_BYTES == 48


def test_a_new_reference_is_placed_by_its_id_or_by_its_group() -> None:
    spread, grouped = make_ref(b"data", partitions=256), make_ref(b"data", partitions=256, group="lane")
    assert spread.id == grouped.id
    assert spread.partition == partition_of(spread.id, partitions=256)
    assert grouped.partition == partition_of(b"lane", partitions=256)


def test_the_size_of_a_reference_is_in_bytes() -> None:
    assert make_ref(memoryview(bytes(24)).cast("B"), partitions=1).size == 24


@pytest.mark.parametrize("length", [0, REF_BYTES - 1, REF_BYTES + 1])
def test_a_reference_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MetadataCorrupt, match="48 bytes"):
        Ref.unpack(bytes(length))


def test_covering_gives_entries_with_their_offsets() -> None:
    sizes = (10, 0, 5, 20)
    entries = tuple(Entry(ref=make_ref(os.urandom(size), partitions=4), content_bytes=size) for size in sizes)
    manifest = Manifest(level=0, entries=entries)
    assert manifest.content_bytes == 35
    assert list(manifest.covering(0, 35)) == [(0, entries[0]), (10, entries[2]), (15, entries[3])]
    assert list(manifest.covering(9, 11)) == [(0, entries[0]), (10, entries[2])]
    assert list(manifest.covering(10, 15)) == [(10, entries[2])]
    assert list(manifest.covering(34, 35)) == [(15, entries[3])]
    assert list(manifest.covering(-50, 1)) == [(0, entries[0])]
    assert list(manifest.covering(35, 40)) == []


def test_an_empty_manifest_decodes_and_covers_nothing() -> None:
    empty = Manifest(level=0, entries=())
    assert Manifest.decode(empty.encode()) == empty
    assert empty.content_bytes == 0
    assert list(empty.covering(0, 1)) == []


def test_any_flipped_bit_is_noticed() -> None:
    encoded = ROOT.encode()
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 0x04
        with pytest.raises(MetadataCorrupt):
            Manifest.decode(bytes(damaged))


def test_any_cut_is_noticed() -> None:
    encoded = LEAF.encode()
    for length in range(len(encoded)):
        with pytest.raises(MetadataCorrupt):
            Manifest.decode(encoded[:length])
    with pytest.raises(MetadataCorrupt):
        Manifest.decode(encoded + b"\0")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"FBMANIF2" + bytes(8), "begins with"),
        (b"FBMANIF1" + b"\0\0\1\0" + bytes(4), "begins with"),
        (b"FBMANIF1" + bytes(4) + b"\1\0\0\0", "1 entries"),
        (b"FBMANIF1" + bytes(4) + b"\xff\xff\xff\xff", "4294967295 entries"),
    ],
)
def test_a_header_that_is_not_ours_is_refused_though_its_checksum_fits(header: bytes, said: str) -> None:
    with pytest.raises(MetadataCorrupt, match=said):
        Manifest.decode(signed(header))


def test_a_leaf_that_disagrees_with_its_chunks_is_refused() -> None:
    lying = Manifest(level=0, entries=(Entry(ref=make_ref(b"four", partitions=4), content_bytes=5),))
    with pytest.raises(MetadataCorrupt, match="sizes"):
        Manifest.decode(lying.encode())
