"""What a path on the command line names.

``bucket/key`` and ``forebay://bucket/key`` are the same, but that the URL is percent-decoded. A path names the object of that
key; commands that take many objects (``-r``, du, verify, replicate) take it as a folder: the object of that key and all that
lies below ``key/``. One that ends with ``/``, or is only a bucket, names what lies below. So ``run1`` never reaches ``run10``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote

from client.errors import InvalidName
from client.names import SCHEME, check_prefix, parse_path
from client.objects import ObjectStore
from client.record import ObjectInfo

__all__ = ["StorePath", "parse_store_path", "walk_objects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePath:
    """A bucket with a key, which may be empty or end with ``/``."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        """Whether it can't be the path of an object."""
        return self.key == "" or self.key.endswith("/")

    @property
    def folder(self) -> str:
        """What the keys below it begin with: empty, or ending with ``/``."""
        return self.key if self.is_folder else f"{self.key}/"

    def require_object(self) -> StorePath:
        """This path, unless it is a folder; then `InvalidName`."""
        if self.is_folder:
            raise InvalidName(f"{self} names no object; give BUCKET/KEY, or -r for everything below it")
        return self

    def receiving(self, name: str) -> StorePath:
        """Where something called `name` goes if it is sent here: into a folder, or under this very key."""
        return replace(self, key=self.key + name) if self.is_folder else self


def parse_store_path(text: str) -> StorePath:
    """The path in `text`; raises `InvalidName`."""
    bucket, key = parse_path(text)
    key = unquote(key) if text.startswith(SCHEME) else key
    # Keys may not begin with a slash or have empty segments, so such a path is a mistake and no empty listing.
    if key.startswith("/") or "//" in key:
        raise InvalidName(f"path {text!r}: there is nothing between two slashes")
    return StorePath(bucket=bucket, key=check_prefix(key))


def walk_objects(store: ObjectStore, path: StorePath, *, versions: bool = False) -> Iterator[ObjectInfo]:
    """The object that `path` names, if there is one, and all below it, in the order of their keys."""
    if not path.is_folder:
        # The object itself is the first of all keys that begin with its own.
        for info in store.walk(path.bucket, prefix=path.key, versions=versions):
            if info.key != path.key:
                break
            yield info
    yield from store.walk(path.bucket, prefix=path.folder, versions=versions)
