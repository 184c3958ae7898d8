"""Ragged columns padded and packed, as torch's own functions do it."""

from __future__ import annotations

import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from loader.collate import Packed, Padded, pack, pad
from loader.errors import ColumnError, InvalidOption
from loader.ragged import Ragged


def ragged(lengths: list[int], shape: tuple[int, ...] = (), dtype: npt.DTypeLike = np.int32) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    values = np.arange(offsets[-1] * int(np.prod(shape))).astype(dtype).reshape(int(offsets[-1]), *shape)
    return Ragged(values=values, offsets=offsets)


@given(
    lengths=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 400)), min_size=1, max_size=8),
    shape=st.sampled_from([(), (3,), (2, 1)]),
    dtype=st.sampled_from(["int32", "float32", "uint8"]),
    value=st.integers(0, 9),
)
@example(lengths=[0, 0], shape=(3,), dtype="float32", value=1)
@example(lengths=[256, 257, 0], shape=(), dtype="int32", value=7)
def test_padding_is_that_of_torch(lengths: list[int], shape: tuple[int, ...], dtype: str, value: int) -> None:
    rows = ragged(lengths, shape, dtype)
    found = pad(value=value)(rows)
    assert isinstance(found, Padded)
    tensors = [torch.from_numpy(row) for row in rows]
    assert torch.equal(found.values, pad_sequence(tensors, batch_first=True, padding_value=value))
    assert found.lengths.tolist() == lengths


@pytest.mark.parametrize("lengths", [[3, 0, 5], [300, 2, 0], [600, 1, 2]])
@pytest.mark.parametrize("length", [2, 4, 300, 512])
def test_fixed_length_cuts_longer_rows(lengths: list[int], length: int) -> None:
    rows = ragged(lengths)
    found = pad(value=-1, length=length)(rows)
    assert found.values.shape == (3, length)
    assert found.lengths.tolist() == [min(length, own) for own in lengths]
    for row, padded in zip(rows, found.values.tolist(), strict=True):
        own = row[:length].tolist()
        assert padded == own + [-1] * (length - len(own))


def test_length_is_rounded_up_to_a_multiple() -> None:
    assert pad(multiple=8)(ragged([3, 9])).values.shape == (2, 16)
    assert pad(multiple=8)(ragged([16])).values.shape == (1, 16)
    assert pad(multiple=8)(ragged([0])).values.shape == (1, 0)


def test_packing_copies_nothing_and_says_where_rows_begin() -> None:
    rows = ragged([2, 0, 5], (4,), "float32")
    found = pack()(rows)
    assert isinstance(found, Packed)
    assert found.cu_seqlens.dtype == torch.int32
    assert found.cu_seqlens.tolist() == [0, 2, 2, 7]
    assert found.max_seqlen == 5
    assert found.values.data_ptr() == rows.values.ctypes.data
    assert pack()(ragged([0])).max_seqlen == 0


def test_more_steps_than_cu_seqlens_can_count_are_refused() -> None:
    values = np.broadcast_to(np.int8(0), (1 << 31,))
    with pytest.raises(InvalidOption, match="2147483648 steps"):
        pack()(Ragged(values=values, offsets=np.array([0, 1 << 31])))


def test_wrong_use_says_what_would_be_right() -> None:
    for function in (pad(), pack()):
        with pytest.raises(ColumnError, match=r"takes a ragged column, such as int32\[\*\], found Tensor"):
            function(torch.zeros(3))
    for options in ({"multiple": 0}, {"length": 0}):
        with pytest.raises(InvalidOption, match="expected 1 or more"):
            pad(**options)


def test_functions_go_to_other_processes() -> None:
    copies = pickle.loads(pickle.dumps([pad(value=1, length=3), pack()]))
    assert copies[0](ragged([1])).values.tolist() == [[0, 1, 1]]
    assert copies[1](ragged([1])).max_seqlen == 1
