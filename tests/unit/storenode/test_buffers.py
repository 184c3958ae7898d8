"""Buffers that are used again."""

from __future__ import annotations

from storenode.buffers import Buffers


def test_a_buffer_comes_back_to_who_asks_for_its_size() -> None:
    stock = Buffers(max_kept_bytes=100)
    first = stock.take(40)
    assert len(first) == 40
    stock.give_back(first)
    assert stock.take(30) is not first
    assert stock.take(40) is first
    assert stock.take(40) is not first


def test_no_more_is_kept_than_allowed() -> None:
    stock = Buffers(max_kept_bytes=100)
    given = [stock.take(40) for _ in range(4)]
    for buffer in given:
        stock.give_back(buffer)
    kept = [stock.take(40) for _ in range(3)]
    # The two that came back last, by identity: equal bytes do not make a buffer the same.
    assert {id(buffer) for buffer in kept} & {id(buffer) for buffer in given} == {id(buffer) for buffer in given[2:]}


def test_a_buffer_larger_than_the_stock_is_let_go() -> None:
    stock = Buffers(max_kept_bytes=10)
    large = stock.take(11)
    stock.give_back(large)
    assert stock.take(11) is not large
