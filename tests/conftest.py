"""What holds for every test: it leaves nothing running or open, and a random failure can be had again.

Leaks: around each test, and around the whole run for what fixtures of a wider scope hold, the process is asked for its
threads, child processes and open files (sockets and pipes among them). What is there afterwards and was not before gets a
moment to go away, for closing is often finished by another thread; what stays fails the test, and processes are ended. A
test that failed already keeps its locals alive in the traceback, so there leaks are ended but not reported.

Seeds: one seed for the run, chosen here unless ``--hypothesis-seed`` gives it, is shown again when something fails.

Profiles of hypothesis, by ``--hypothesis-profile``: `quick` is what `make test` runs, `thorough` is for changes of formats,
order and placement.
"""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

GRACE_S = 3.0
POLL_S = 0.02
MARKED_FOLDERS = ("cluster", "fault")
RUN_VARIABLE, RUN_ID = "FOREBAY_TEST_RUN", secrets.token_hex(8)

_failed = pytest.StashKey[bool]()
_seed = pytest.StashKey[str]()

# No deadline per example: a shared machine is slow now and then, and a test that hangs meets pytest's timeout.
hypothesis.settings.register_profile("quick", max_examples=100, deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", max_examples=5_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("quick")


# --- seeds and marks


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads the option
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbits(32))
    config.stash[_seed] = config.option.hypothesis_seed
    # Descendants inherit it, and an orphan whose parent was killed still carries it.
    os.environ[RUN_VARIABLE] = RUN_ID


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: --hypothesis-seed={config.stash[_seed]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        seed = terminalreporter.config.stash[_seed]
        terminalreporter.write_line(f"Random tests of this run are had again with --hypothesis-seed={seed}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


# --- leaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this process holds at one moment that a test could leave behind."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    files: frozenset[tuple[int, str]]

    def __bool__(self) -> bool:
        return bool(self.threads or self.children or self.files)

    def __sub__(self, other: Held) -> Held:
        return Held(
            threads=self.threads - other.threads, children=self.children - other.children, files=self.files - other.files
        )

    def __str__(self) -> str:
        lines = [f"thread {thread.name!r}" for thread in self.threads]
        lines += [f"process {pid}: {_command(pid)}" for pid in self.children]
        lines += [f"file descriptor {fd}: {target}" for fd, target in self.files]
        return "\n".join(sorted(lines))


def _held() -> Held:
    # A dummy stands for a thread of a library's own that called into Python once; it never leaves the list.
    threads = frozenset(thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread))
    return Held(threads=threads, children=frozenset(_children()), files=frozenset(_files()))


def _children() -> Iterator[int]:
    """Child processes that run, but for those that multiprocessing keeps."""
    kept = _kept_processes()
    for task in _entries("/proc/self/task"):
        with suppress(OSError):  # the thread has ended
            for pid in map(int, Path("/proc/self/task", task, "children").read_text().split()):
                if pid not in kept and not _is_zombie(pid):
                    yield pid


def _kept_processes() -> set[int | None]:
    """The two processes that multiprocessing keeps for the life of their parent."""
    return {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None),
    }


def _files() -> Iterator[tuple[int, str]]:
    """Open file descriptors with what they lead to, but for the pipes that libraries keep for the life of the process."""
    found: dict[int, str] = {}
    for name in _entries("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    kept = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_fd", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    # The standard streams are pytest's, which points them elsewhere and back.
    return (
        (fd, target)
        for fd, target in found.items()
        if fd > 2 and fd not in kept and target not in _arrow_pipe and _SHARED_HEAP not in target
    )


# multiprocessing keeps the unnamed memory that it once shared, for the next who wants some.
_SHARED_HEAP = "/pym-"
_arrow_pipe: list[str] = []


def _notice_arrow_pipe(extra: Held) -> None:
    """Remember the pipe from pyarrow to itself, which its first reader opens (to stop at Ctrl-C) and which stays."""
    if not _arrow_pipe and "pyarrow" in sys.modules:
        ends = Counter(target for _, target in extra.files if target.startswith("pipe:"))
        _arrow_pipe.extend([target for target, count in ends.items() if count == 2][:1])


def _entries(folder: str) -> list[str]:
    # Without /proc (macOS) only threads are watched.
    return os.listdir(folder) if os.path.isdir(folder) else []


def _is_zombie(pid: int) -> bool:
    # A zombie holds nothing; that nobody waited for it is what Popen's own ResourceWarning is for.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended meanwhile"


def _orphans() -> frozenset[int]:
    """Processes that this run started, however far down, and that run on without their parents."""
    mark = f"{RUN_VARIABLE}={RUN_ID}".encode()
    found = set()
    for pid in (int(name) for name in _entries("/proc") if name.isdecimal()):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return frozenset(found - {os.getpid()} - _kept_processes())


@contextmanager
def no_leaks() -> Iterator[list[str]]:
    """Compare what is held before and after the block; the list it gives names, afterwards, what was left."""
    left: list[str] = []
    before = _held()
    yield left
    extra = _held() - before
    if extra:
        gc.collect()  # what only a cycle still refers to is not a leak
        _notice_arrow_pipe(extra)
    deadline = time.monotonic() + GRACE_S
    while (extra := _held() - before) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if extra:
        left.append(str(extra))
    _end(extra.children)


def _end(pids: frozenset[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # an orphan is not ours to wait for
            os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def _no_leak_in_test(request: pytest.FixtureRequest) -> Iterator[None]:
    with no_leaks() as left:
        yield
    if left and not request.node.stash.get(_failed, False):
        pytest.fail(f"The test left behind:\n{left[0]}", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def _no_leak_in_run(request: pytest.FixtureRequest) -> Iterator[None]:
    with no_leaks() as left:
        yield
    orphans = _orphans()
    left += [f"orphaned process {pid}: {_command(pid)}" for pid in sorted(orphans)]
    _end(orphans)
    if left and not request.session.testsfailed:
        pytest.fail("The run left behind:\n" + "\n".join(left), pytrace=False)
