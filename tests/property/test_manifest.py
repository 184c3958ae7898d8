"""References and manifests: what is encoded comes back, what is not encoded does not, and covering is exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import MetadataCorrupt
from client.manifest import REF_BYTES, Entry, Manifest, Ref

refs = st.builds(
    Ref,
    partition=st.integers(0, 2**32 - 1),
    id=st.binary(min_size=32, max_size=32),
    size=st.integers(0, 2**32 - 1),
    check=st.integers(0, 2**64 - 1),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    level = draw(st.integers(0, 3))
    listed = draw(st.lists(refs, max_size=20))
    sizes = st.integers(0, 2**40)
    entries = (Entry(ref=ref, content_bytes=draw(sizes) if level else ref.size) for ref in listed)
    return Manifest(level=level, entries=tuple(entries))


@given(ref=refs)
def test_references_come_back(ref: Ref) -> None:
    assert len(ref.pack()) == REF_BYTES
    assert Ref.unpack(ref.pack()) == ref


@given(manifest=manifests())
def test_manifests_come_back(manifest: Manifest) -> None:
    assert Manifest.decode(manifest.encode()) == manifest


@given(manifest=manifests(), data=st.data())
def test_damaged_manifests_never_decode(manifest: Manifest, data: st.DataObject) -> None:
    encoded = manifest.encode()
    position = data.draw(st.integers(0, len(encoded) - 1))
    change = data.draw(st.integers(1, 255))
    damaged = bytearray(encoded)
    damaged[position] ^= change
    with pytest.raises(MetadataCorrupt):
        Manifest.decode(bytes(damaged))
    with pytest.raises(MetadataCorrupt):
        Manifest.decode(encoded[:position])


@given(junk=st.binary(max_size=300))
def test_junk_never_decodes(junk: bytes) -> None:
    with pytest.raises(MetadataCorrupt):
        Manifest.decode(junk)


@given(sizes=st.lists(st.integers(0, 5), max_size=12), data=st.data())
def test_covering_is_what_a_list_of_all_bytes_would_say(sizes: list[int], data: st.DataObject) -> None:
    entries = tuple(
        Entry(ref=Ref(partition=place, id=bytes(32), size=size, check=0), content_bytes=size)
        for place, size in enumerate(sizes)
    )
    manifest = Manifest(level=1, entries=entries)
    owners = [place for place, size in enumerate(sizes) for _ in range(size)]
    assert manifest.content_bytes == len(owners)
    start = data.draw(st.integers(-2, len(owners) + 2))
    end = data.draw(st.integers(start, len(owners) + 3))
    found = list(manifest.covering(start, end))
    assert [entry.ref.partition for _, entry in found] == sorted(set(owners[max(0, start) : max(0, end)]))
    for offset, entry in found:
        assert owners.index(entry.ref.partition) == offset
