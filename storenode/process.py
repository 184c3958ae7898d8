"""A node as a child process: started, awaited, signalled, reaped; and what the child does so as not to outlive its parent.

The child says one line on standard output when it answers, or when it can't start: an object of JSON, so that the parent raises
the same error. Nothing else ever comes there, so the pipe can't fill. Its log goes to a file.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from client.errors import DeadlineExceeded, InternalError, from_problem

__all__ = ["PARENT_VARIABLE", "NodeProcess", "die_with_parent"]

PARENT_VARIABLE = "FOREBAY_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_MAX_LINE_BYTES = 64 * 1024
_LOG_TAIL_BYTES = 2000


def die_with_parent() -> None:
    """In a child that was given its parent: be killed when that ends, and end now if it already has."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # Asked after the call: a parent that ended before it sends no signal any more.
    if os.getppid() != int(parent):
        sys.exit(1)


class NodeProcess:
    """One life of a node process.

    Parameters
    ----------
    environment : mapping
        The child's whole environment.
    log_path : Path
        Its standard error is appended there.
    spawner : Executor
        One thread that lives as long as the cluster. Linux sends the parent's death signal when the *thread* that made the
        child ends, so a node started from a short-lived thread would be killed with it.
    on_exit : callable
        Called from a thread of its own with the exit code (negative: the signal) once the process is reaped, unless
        `expect_end` was called before.
    """

    def __init__(
        self, environment: Mapping[str, str], *, log_path: Path, spawner: Executor, on_exit: Callable[[int], None]
    ) -> None:
        self.log_path = log_path
        self._end_is_expected = False
        self._on_exit = on_exit
        self._process = spawner.submit(self._spawn, {**environment, PARENT_VARIABLE: str(os.getpid())}).result()
        self.pid = self._process.pid
        self._reaper = threading.Thread(target=self._reap, name=f"forebay-reaper-{self.pid}", daemon=True)
        self._reaper.start()

    def _spawn(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "storenode", "--json"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C in a terminal goes to the whole foreground group; nodes are stopped by their parent, in order.
                process_group=0,
            )

    @property
    def running(self) -> bool:
        """Whether it has not been reaped yet."""
        return self._process.returncode is None

    def await_ready(self, *, timeout_s: float) -> dict[str, Any]:
        """What the child says once it answers.

        Raises
        ------
        StoreError
            The reason that the child gives for not starting.
        InternalError
            It ended without a word; the message holds the end of its log.
        DeadlineExceeded
            It was silent for too long.
        """
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            line = self._read_line(pipe.fileno(), deadline_s=time.monotonic() + timeout_s)
        try:
            said = json.loads(line)
        except ValueError as exc:
            raise InternalError(f"node process {self.pid} ended before it answered. {self.last_words()}") from exc
        if "type" in said:
            raise from_problem(said, node_id="")
        return dict(said)

    def _read_line(self, pipe: int, *, deadline_s: float) -> bytes:
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))
            if not readable:
                raise DeadlineExceeded(f"node process {self.pid} did not answer in time. {self.last_words()}")
            piece = os.read(pipe, _MAX_LINE_BYTES)
            if not piece:
                break
            line += piece
        return line

    def last_words(self) -> str:
        """The end of its log, for messages."""
        try:
            text = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            text = ""
        return f"The end of {self.log_path}:\n{text}" if text else f"Its log {self.log_path} is empty."

    def expect_end(self) -> None:
        """Note that the process is about to be ended on purpose."""
        self._end_is_expected = True

    def signal(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        self._process.send_signal(number)

    def wait(self, *, timeout_s: float) -> bool:
        """Wait until it is reaped; False if it still runs at the deadline."""
        self._reaper.join(timeout_s)
        return not self._reaper.is_alive()

    def kill(self) -> None:
        """End it at once, paused or not, and reap it."""
        self.expect_end()
        self.signal(signal.SIGKILL)
        self._reaper.join()

    def _reap(self) -> None:
        code = self._process.wait()
        if not self._end_is_expected:
            self._on_exit(code)
