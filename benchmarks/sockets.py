"""What a loopback connection can carry, by how a file is sent and when its reader wakes: ``python -m benchmarks.sockets``.

Two processes, one connection, 8 MiB from a file in the page cache into one buffer, its xxh3 taken while it comes. No HTTP and
no Forebay: this is what the choices of the data plane rest on (docs/adr/0012).
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import xxhash
from rich.console import Console
from rich.table import Table

SIZE = 8 * 1024 * 1024
ROUNDS, REPEATS = 5, 40
MIB = 1024 * 1024


def send_mapped(sock: socket.socket, fd: int, *, slice_bytes: int) -> None:
    """Send the file out of a map."""
    with mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) as pages, memoryview(pages) as view:
        for start in range(0, SIZE, slice_bytes):
            with view[start : start + slice_bytes] as part:
                sock.sendall(part)


def send_file(sock: socket.socket, fd: int, *, slice_bytes: int) -> None:
    """Send the file by sendfile(2)."""
    sent = 0
    while sent < SIZE:
        sent += os.sendfile(sock.fileno(), fd, sent, min(slice_bytes, SIZE - sent))


WAYS: dict[str, tuple[Callable[..., None], int]] = {
    "map, at once": (send_mapped, SIZE),
    "map, 1 MiB": (send_mapped, MIB),
    "map, 256 KiB": (send_mapped, MIB // 4),
    "sendfile": (send_file, SIZE),
}


def serve(listener: socket.socket, path: Path, way: str, buffers: int) -> None:
    """Send the file for each byte that comes."""
    send, slice_bytes = WAYS[way]
    with listener, path.open("rb") as file:
        sock, _ = listener.accept()
        with sock:
            if buffers:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            while sock.recv(1):
                send(sock, file.fileno(), slice_bytes=slice_bytes)


def receive(sock: socket.socket, view: memoryview, *, woken_at: int) -> None:
    """Ask for the file once and take it."""
    sock.sendall(b".")
    check, taken, low = xxhash.xxh3_64(), 0, 1
    while taken < SIZE:
        wanted = woken_at if SIZE - taken >= 2 * woken_at else 1
        if wanted != low:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            low = wanted
        count = sock.recv_into(view[taken:])
        if not count:
            raise ConnectionError("the sender is gone")
        check.update(view[taken : taken + count])
        taken += count


def measure(path: Path, way: str, *, woken_at: int, buffers: int) -> list[float]:
    """GB/s of each round, sorted; a fresh connection each."""
    view, figures = memoryview(bytearray(SIZE)), []
    for _ in range(ROUNDS):
        listener = socket.create_server(("127.0.0.1", 0))
        sender = multiprocessing.Process(target=serve, args=(listener, path, way, buffers))
        sender.start()
        with socket.socket() as sock:
            if buffers:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            sock.settimeout(30.0)
            sock.connect(listener.getsockname())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.close()
            receive(sock, view, woken_at=woken_at)
            began_s = time.perf_counter()
            for _ in range(REPEATS):
                receive(sock, view, woken_at=woken_at)
            figures.append(REPEATS * SIZE / 1e9 / (time.perf_counter() - began_s))
        sender.join()
    return sorted(figures)


def main() -> None:
    """Measure and print all combinations."""
    table = Table("sent by", "reader woken at", "socket buffers", "GB/s", "least", "most")
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path = Path(directory) / "file"
        path.write_bytes(os.urandom(SIZE))
        for way in WAYS:
            for woken_at, buffers in ((1, 0), (MIB // 4, 0), (MIB // 2, 0), (MIB, 0), (1, MIB // 4), (1, MIB)):
                figures = measure(path, way, woken_at=woken_at, buffers=buffers)
                shown = [f"{figure:.2f}" for figure in (statistics.median(figures), figures[0], figures[-1])]
                table.add_row(way, f"{woken_at:,}", f"{buffers:,}" if buffers else "the kernel's", *shown)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
