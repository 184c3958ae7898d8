"""Marks: which copies records refer to, by partition and id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storenode.marks import Chunk, Marks

chunks = st.tuples(st.integers(0, 3), st.binary(min_size=32, max_size=32))


@given(here=st.sets(chunks, max_size=20), referred=st.sets(chunks, max_size=20), both=st.sets(chunks, max_size=20))
def test_garbage_is_what_is_here_and_not_referred_to(here: set[Chunk], referred: set[Chunk], both: set[Chunk]) -> None:
    here |= both
    marks = Marks()
    for first in {chunk[1][0] for chunk in here}:
        marks.expect(first, [chunk for chunk in here if chunk[1][0] == first])
    for chunk in referred | both:
        marks.keep(chunk, copies=2)
    garbage = here - referred - both
    assert {chunk for chunk in here | referred if marks.is_garbage(chunk)} == garbage
    assert (len(marks), marks.num_kept) == (len(here), len(here) - len(garbage))


def test_one_id_in_two_partitions_is_two_copies() -> None:
    marks = Marks()
    marks.expect(7, [(1, bytes([7] * 32)), (2, bytes([7] * 32))])
    marks.keep((1, bytes([7] * 32)), copies=1)
    assert not marks.is_garbage((1, bytes([7] * 32)))
    assert marks.is_garbage((2, bytes([7] * 32)))


def test_the_greatest_number_of_copies_counts() -> None:
    marks, chunk, other = Marks(), (1, bytes([7] * 32)), (2, bytes([7] * 32))
    marks.expect(7, [chunk, other])
    for copies in (2, 3, 1):
        marks.keep(chunk, copies=copies)
    assert (marks.copies_of(chunk), marks.copies_of(other), marks.num_kept) == (3, 0, 1)
    assert marks.copies_of((5, bytes([9] * 32))) == 0
