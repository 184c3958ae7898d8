"""The cluster's secret: a file that all nodes have, made once, and never shown.

A text file of one key a line, each 32 bytes or more in hex or base64. The first signs new tokens, all of them verify. So a key
is replaced without a moment in which tokens fail, each step on all nodes before the next begins:

1. write the new key below the old one and restart the nodes one after the other: all of them verify both;
2. move it to the top and restart: it signs, for nodes and for whoever runs `forebay token create`;
3. when the tokens signed by the old key have expired or were replaced, remove that line and restart: what it signed is refused.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from client.errors import Misconfigured
from storenode.filesystem import FileSystem, UnnamedFile, disk_error, opened

__all__ = ["Secret", "create_secret", "read_secret"]

KEY_BYTES = 32
MAX_KEYS = 8
_MAX_FILE_BYTES = 16 * 1024
_MODE = 0o600


class Secret:
    """Keys, the signing one first. It shows none of them.

    Attributes
    ----------
    keys : tuple of bytes
        At least one.
    """

    __slots__ = ("keys",)

    def __init__(self, *keys: bytes) -> None:
        self.keys = keys

    def __repr__(self) -> str:
        return f"<Secret of {len(self.keys)} keys>"


def read_secret(path: Path) -> Secret:
    """The secret in a file; raises `Misconfigured` if there is none, or none that is good enough."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise Misconfigured(f"there is no secret at {path}; `forebay secret create {path}` makes one") from exc
    except OSError as exc:
        raise Misconfigured(f"the secret at {path} can't be read: {exc.strerror}") from exc
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if len(content) > _MAX_FILE_BYTES or not 1 <= len(lines) <= MAX_KEYS:
        raise Misconfigured(f"{path}: expected 1 to {MAX_KEYS} lines with a key each, found {len(lines)}")
    # Where there is a mistake, only its line is named.
    keys = [_key(line) for line in lines]
    wrong = [number for number, key in enumerate(keys, 1) if len(key) < KEY_BYTES]
    if wrong:
        raise Misconfigured(f"{path}: key {wrong[0]} is no {KEY_BYTES} bytes or more in hex or base64")
    return Secret(*keys)


def create_secret(path: Path, *, fs: FileSystem | None = None) -> bool:
    """Make a file with a random secret, for its owner alone; an existing one stays as it is.

    Of any number of processes that do this at once, one makes it, and all return after it is durable.

    Returns
    -------
    bool
        Whether it was made by this call.

    Raises
    ------
    Misconfigured
        What is there is no secret, or the file can't be made there.
    DiskFailed, DiskFull
        It could not be written.
    """
    fs = fs or FileSystem()
    try:
        with opened(fs.open_directory(path.parent)) as directory:
            made = _make(fs, path.name, directory=directory)
            # Also when it was there: who made it may have died before this, and tokens that it signs must not outlive it.
            fs.sync(directory)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        raise Misconfigured(f"no secret can be made at {path}: {exc.strerror}") from exc
    except OSError as exc:
        raise disk_error(exc, path) from exc
    read_secret(path)
    return made


def _make(fs: FileSystem, name: str, *, directory: int) -> bool:
    with UnnamedFile(fs, directory=directory, mode=_MODE) as file:
        file.write(f"{secrets.token_hex(KEY_BYTES)}\n".encode())
        try:
            file.link_as(name, directory=directory)
        except FileExistsError:
            return False
    return True


def _key(line: bytes) -> bytes:
    """The key in a line, nothing if it holds none. What is hex is hex, although it may be base64 as well."""
    for decode in (bytes.fromhex, _base64):
        try:
            return decode(line.decode("ascii"))
        except ValueError:
            continue
    return b""


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as exc:
        raise ValueError from exc
