"""Who a node is, and that it is the only one: the claim on a data directory.

A node's id is random, minted once and kept in ``node.json`` beside its chunks, so it moves with the disk and survives a
change of host name or address. The claim is a flock on the directory itself: the kernel drops it with the process, however
that ends, so there is no lock file to clean up.

``format`` guards the whole directory: a program that does not know it refuses to start, rather than take files of a later
layout for corrupt ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from client.errors import Misconfigured
from storenode.filesystem import FileSystem, disk_error, opened, write_new

__all__ = ["DataDirectory", "claim", "cluster_of"]

FORMAT = 1
_FILE = "node.json"
_MAX_FILE_BYTES = 4096


class DataDirectory:
    """A data directory that this process owns until `close`, or until it ends.

    Attributes
    ----------
    root : Path
        The directory.
    node_id : str
        16 hex digits, the same at every start.
    cluster_id : str
        The cluster that the directory belongs to.
    """

    __slots__ = ("_fd", "cluster_id", "node_id", "root")

    def __init__(self, root: Path, *, fd: int, node_id: str, cluster_id: str) -> None:
        self._fd = fd
        self.root = root
        self.node_id = node_id
        self.cluster_id = cluster_id

    def close(self) -> None:
        """Give the directory up; nothing may write to it after this."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def claim(root: Path, *, cluster_id: str, fs: FileSystem | None = None) -> DataDirectory:
    """Own `root`, make it if it is missing, and learn the node id in it or mint one.

    Raises
    ------
    Misconfigured
        If another process holds the directory, if it belongs to another cluster or a later program, or can't be used.
    DiskFailed, DiskFull
        If a new directory or id could not be written.
    """
    fs = fs or FileSystem()
    try:
        _make(root, fs=fs)
        fd = fs.open_directory(root)
    except (NotADirectoryError, PermissionError) as exc:
        raise Misconfigured(f"the data directory {root} can't be used: {exc.strerror}") from exc
    except OSError as exc:
        raise disk_error(exc, root) from exc
    try:
        _lock(fd, root)
        try:
            found = _read(root, directory=fd, fs=fs)
            if found is not None and found[1] != cluster_id:
                raise Misconfigured(
                    f"{root} belongs to cluster {found[1]!r}, and this node was started for {cluster_id!r}; use the directory "
                    "of that cluster, or an empty one"
                )
            node_id = found[0] if found else _mint(fd, cluster_id, fs=fs)
            # Before anyone hears the id, and also when it was found, for who wrote it may have died before this: an id that
            # the cluster knows and the directory forgets is a node that never comes back.
            fs.sync(fd)
            return DataDirectory(root, fd=fd, node_id=node_id, cluster_id=cluster_id)
        except OSError as exc:
            raise disk_error(exc, root / _FILE) from exc
    except BaseException:
        os.close(fd)
        raise


def cluster_of(root: Path) -> str | None:
    """The cluster that a data directory belongs to; None for a new one. Raises `Misconfigured` if it can't be read."""
    fs = FileSystem()
    try:
        with opened(fs.open_directory(root)) as directory:
            found = _read(root, directory=directory, fs=fs)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Misconfigured(f"the data directory {root} can't be used: {exc.strerror}") from exc
    return found[1] if found else None


def _make(root: Path, *, fs: FileSystem) -> None:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        # Another process may make it at the same moment; the lock tells them apart.
        with suppress(FileExistsError):
            fs.make_directory(path)
        # A new directory is an entry of its parent: until that is on the disk, a power cut takes all chunks with it.
        with opened(fs.open_directory(path.parent)) as parent:
            fs.sync(parent)


def _lock(fd: int, root: Path) -> None:
    try:
        # Without waiting: who holds it is a running node and will not let go. Two nodes on one directory would each
        # quarantine and delete under the other's hands.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Misconfigured(
            f"the data directory {root} is held by another process; stop that node, or give this one a directory of its own"
        ) from exc
    except OSError as exc:
        raise disk_error(exc, root) from exc


def _read(root: Path, *, directory: int, fs: FileSystem) -> tuple[str, str] | None:
    """The ids of node and cluster in the directory, None in a new one."""
    path = root / _FILE
    buffer = bytearray(_MAX_FILE_BYTES)
    try:
        with opened(fs.open_file(_FILE, directory=directory)) as fd:
            num_read = fs.pread_into(fd, memoryview(buffer), offset=0)
    except FileNotFoundError:
        return None
    try:
        found = json.loads(buffer[:num_read])
        number, node_id, owner = int(found["format"]), str(found["node_id"]), str(found["cluster_id"])
    except (ValueError, KeyError, TypeError) as exc:
        raise Misconfigured(f"{path} holds no node identity ({exc!r}); restore it, or start with an empty directory") from exc
    if number != FORMAT:
        raise Misconfigured(f"{path} says format {number}, and this program knows {FORMAT}; use the release that wrote it")
    return node_id, owner


def _mint(directory: int, cluster_id: str, *, fs: FileSystem) -> str:
    node_id = secrets.token_hex(8)
    text = json.dumps({"format": FORMAT, "node_id": node_id, "cluster_id": cluster_id})
    write_new(fs, _FILE, directory=directory, parts=(text.encode(),))
    return node_id
