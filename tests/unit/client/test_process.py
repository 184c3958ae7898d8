"""A client that a fork has copied says so."""

from __future__ import annotations

import os
from concurrent.futures import Future

import pytest

from client.errors import Misconfigured
from client.in_flight import ThreadPool
from client.process import HomeProcess
from client.transport import Transport
from tests.support.fake_cluster import quick_config


def in_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.getpid()
    monkeypatch.setattr("client.process.os.getpid", lambda: real + 1)


def test_at_home_nothing_happens() -> None:
    HomeProcess().check()


def test_a_fork_is_told_to_open_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    home = HomeProcess()
    in_fork(monkeypatch)
    with pytest.raises(Misconfigured, match=f"opened in process {os.getpid() - 1}.*each process"):
        home.check()


def test_a_pool_refuses_in_a_fork_instead_of_waiting_for_threads_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPool(1, name="test") as pool:
        future: Future[int] = pool.submit(int, "7")
        assert future.result() == 7
        with monkeypatch.context() as patched:
            in_fork(patched)
            with pytest.raises(Misconfigured):
                pool.submit(int, "7")


def test_a_transport_refuses_in_a_fork_before_it_touches_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Transport(quick_config())
    in_fork(monkeypatch)
    with pytest.raises(Misconfigured):
        transport.request("GET", "http://127.0.0.1:1", "/")
