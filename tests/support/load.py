"""Readers and writers that never rest, and that remember what they wrote."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from client.client import Client
from client.errors import StoreError

__all__ = ["Load", "load_on"]


class Load:
    """What is written and read meanwhile. Every answer is compared.

    Attributes
    ----------
    written : dict of str to bytes
        What was acknowledged, by key.
    num_reads : int
        That gave the right bytes.
    failures : list of str
        What went wrong.
    """

    def __init__(self, client: Client, *, bucket: str, size_bytes: int, seed: int) -> None:
        self.written: dict[str, bytes] = {}
        self.num_reads = 0
        self.failures: list[str] = []
        self._client = client
        self._bucket = bucket
        self._size_bytes = size_bytes
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._read)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, after the requests under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        while not self._stop.is_set():
            key, data = f"load/{len(self.written):05d}", self._random.randbytes(self._size_bytes)
            try:
                self._client.put(self._bucket, key, data)
                self.written[key] = data
            except StoreError as error:
                self.failures.append(f"writing {key}: {error.message}")
            self._stop.wait(0.05)  # The nodes move data on the same two cores.

    def _read(self) -> None:
        choice = random.Random(0)
        while not self._stop.is_set():
            keys = list(self.written)
            if not keys:
                self._stop.wait(0.01)
                continue
            key = choice.choice(keys)
            try:
                if self._client.get(self._bucket, key) != self.written[key]:
                    self.failures.append(f"reading {key}: other bytes came than were written")
                self.num_reads += 1
            except StoreError as error:
                self.failures.append(f"reading {key}: {error.message}")
            self._stop.wait(0.01)


@contextmanager
def load_on(client: Client, *, bucket: str, size_bytes: int, seed: int = 1) -> Iterator[Load]:
    """Readers and writers for the length of the block, with no failure at its end."""
    load = Load(client, bucket=bucket, size_bytes=size_bytes, seed=seed)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    assert load.failures == []
    assert load.written and load.num_reads
