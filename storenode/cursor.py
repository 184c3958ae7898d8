"""How far this node has come: one small durable file, replaced atomically.

The file says "this node holds every chunk that placement gives it, for all records up to metadata revision r, under layout
v". It may lag behind the truth, never run ahead of it: a cursor that is too old costs some looking at files, one that is
too new would leave copies missing that nobody looks for. So anything wrong with the file counts as no cursor at all, and the
node goes through all records.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storenode.filesystem import FileSystem, disk_error, opened, write_new

__all__ = ["Cursor", "CursorFile"]

_NAME = "follower.json"
_NEW_NAME = "follower.json.new"
_FORMAT = 1
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Complete to metadata revision `revision` under layout version `layout`.

    Attributes
    ----------
    incarnation : str
        Of the metadata that the revisions are of.
    seen : int
        The highest revision of it that this node knows of. Metadata that has less was restored from a backup.
    """

    revision: int
    layout: int
    incarnation: str = ""
    seen: int = field(default=0, compare=False)


class CursorFile:
    """The cursor in a data directory.

    Parameters
    ----------
    directory : Path
        The node's data directory.
    cluster_id : str
        Kept in the file: revisions of another cluster mean nothing.
    fs : FileSystem
        Calls of the operating system.
    """

    def __init__(self, directory: Path, *, cluster_id: str, fs: FileSystem) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._fs = fs

    def load(self) -> Cursor | None:
        """The cursor, or None if there is none that can be trusted."""
        buffer = bytearray(_MAX_BYTES)
        try:
            with (
                opened(self._fs.open_directory(self._directory)) as directory,
                opened(self._fs.open_file(_NAME, directory=directory)) as fd,
            ):
                count = self._fs.pread_into(fd, memoryview(buffer), offset=0)
            value = json.loads(buffer[:count])
            if value["format"] != _FORMAT or value["cluster_id"] != self._cluster_id:
                return None
            return Cursor(
                revision=int(value["revision"]),
                layout=int(value["layout"]),
                incarnation=str(value.get("incarnation", "")),
                seen=int(value.get("seen", value["revision"])),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, cursor: Cursor) -> None:
        """Replace the cursor durably. Raises `DiskFull` or `DiskFailed`; the old cursor is then still there."""
        value = {
            "format": _FORMAT,
            "cluster_id": self._cluster_id,
            "revision": cursor.revision,
            "layout": cursor.layout,
            "incarnation": cursor.incarnation,
            "seen": cursor.seen,
        }
        try:
            with opened(self._fs.open_directory(self._directory)) as directory:
                with suppress(FileNotFoundError):  # left by a crash between the two steps
                    self._fs.unlink(_NEW_NAME, directory=directory)
                write_new(self._fs, _NEW_NAME, directory=directory, parts=[json.dumps(value).encode()])
                self._fs.rename(_NEW_NAME, directory=directory, to_name=_NAME, to_directory=directory)
                # Without it a power cut may bring the old cursor back. That would be sound; this only saves the work.
                self._fs.sync(directory)
        except OSError as exc:
            raise disk_error(exc, self._directory / _NAME) from exc
