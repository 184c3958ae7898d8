"""``forebay://`` for everything that opens files through fsspec: pandas, pyarrow, torch, Hugging Face datasets and others.

fsspec finds this class by itself wherever Forebay is installed (entry point ``fsspec.specs``). Buckets are the first
component of a path; below them a folder is there as long as an object lies in it, as in any object store. A file that is
written becomes visible when it is closed, whole; one that was opened keeps showing the version that was opened. Nothing about
names is cached, so that a listing shows what is there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractBufferedFile

from client.client import Client
from client.errors import (
    BucketExists,
    BucketNotEmpty,
    BucketNotFound,
    Forbidden,
    ObjectNotFound,
    PreconditionFailed,
    SnapshotNotFound,
)
from client.objects import ObjectStore
from client.record import Condition, ObjectInfo
from client.transfer import get_file

__all__ = ["ForebayFile", "ForebayFileSystem"]

_BLOCK_BYTES: Final = 8 << 20
Entry = dict[str, Any]


class ForebayFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Buckets and objects as folders and files.

    Parameters
    ----------
    endpoints, token, profile
        As for `client.Client`; by default from the environment or profile.

    Raises
    ------
    FileNotFoundError, FileExistsError, PermissionError
        For what fsspec's users expect them for. Any other failure is a `client.errors.StoreError`.
    """

    protocol = "forebay"
    root_marker = ""

    def __init__(
        self,
        endpoints: str | list[str] | None = None,
        token: str | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._connect: Callable[[], ObjectStore] = lambda: Client(endpoints, token=token, profile=profile)
        self._stores: dict[int, ObjectStore] = {}

    @property
    def store(self) -> ObjectStore:
        """The client, opened at first use, once in each process."""
        pid = os.getpid()
        if pid not in self._stores:
            opened = self._connect()
            # Not under a lock, which a fork could take along. Of threads that come at once (pyarrow's), one's is kept.
            if self._stores.setdefault(pid, opened) is opened:
                # fsspec keeps an instance for each thread and never closes one.
                weakref.finalize(self, _close, opened, pid)
            else:
                opened.close()
        return self._stores[pid]

    @property
    def fsid(self) -> str:
        """Names this kind of file system; paths name the rest."""
        return "forebay"

    # Names

    def info(self, path: str, **options: Any) -> Entry:
        """One entry: ``name``, ``size``, ``type``, and of a file ``etag``, ``version``, ``created``."""
        bucket, key = self._split(path)
        with _as_os_errors(path):
            if not key:
                return self._bucket_info(bucket)
            try:
                return _file(self.store.stat(bucket, key))
            except ObjectNotFound:
                below = self.store.list(bucket, prefix=f"{key}/", limit=1)
                if below.objects:
                    return _folder(f"{bucket}/{key}")
                raise

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """The entries of a folder, or the one that is a file."""
        bucket, key = self._split(path)
        with _as_os_errors(path):
            if not bucket:
                entries = [_folder(name) for name in self.store.buckets.list()]
            else:
                entries = list(self._children(bucket, f"{key}/" if key else ""))
                if not entries:
                    entries = [_file(self.store.stat(bucket, key))] if key else []
                    self.store.catalog.bucket(bucket)
        return entries if detail else [entry["name"] for entry in entries]

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **options: Any) -> Any:
        """All files below a path, by one listing."""
        bucket, key = self._split(path)
        if maxdepth is not None or withdirs or not bucket:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **options)
        try:
            with _as_os_errors(path):
                found = {f"{bucket}/{info.key}": info for info in self.store.walk(bucket, prefix=f"{key}/" if key else "")}
                if not found and key:
                    found = {f"{bucket}/{key}": self.store.stat(bucket, key)}
        except FileNotFoundError:
            found = {}
        return {name: _file(info) for name, info in found.items()} if detail else list(found)

    def created(self, path: str) -> Any:
        """When the file was written."""
        return self.info(path)["created"]

    modified = created

    def checksum(self, path: str) -> int:
        """A number that changes whenever the file does."""
        return int.from_bytes(self.info(path)["etag"].encode(), "big")

    def ukey(self, path: str) -> str:
        """A text that changes whenever the file does."""
        return str(self.info(path)["etag"])

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Make a bucket. Folders below one need not be made."""
        bucket, key = self._split(path)
        if key:
            return
        with _as_os_errors(path):
            if bucket in self.store.buckets.list():
                raise FileExistsError(path)
            self.store.buckets.create(bucket, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a bucket if it is missing. Folders below one need not be made."""
        bucket, key = self._split(path)
        with _as_os_errors(path):
            if bucket not in self.store.buckets.list():
                self.store.buckets.create(bucket)
            elif not key and not exist_ok:
                raise FileExistsError(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty bucket. Other folders go with their last file."""
        bucket, key = self._split(path)
        if not key:
            with _as_os_errors(path):
                self.store.buckets.delete(bucket)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        with _as_os_errors(path):
            self.store.delete(*self._split_file(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, with `recursive` all below folders, and buckets that were named."""
        for entry in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
            info = self.info(entry) if self.exists(entry) else None  # A folder goes with its last file.
            if info is None:
                continue
            if info["type"] == "file":
                self.rm_file(entry)
            elif "/" not in entry:
                self.rmdir(entry)
            elif not recursive:
                raise IsADirectoryError(f"{entry} is a folder; remove it with recursive=True")

    # Bytes

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Bytes ``[start, end)``; negative ones count from the end."""
        with _as_os_errors(path):
            info = self.store.stat(*self._split_file(path))
            first, last, _ = slice(start, end).indices(info.size)
            return self.store.read(info, start=first, end=last) if first < last else b""

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **options: Any) -> None:
        """Write a file whole."""
        with _as_os_errors(path):
            self.store.put(*self._split_file(path), value, if_none_match="*" if mode == "create" else None)

    def put_file(
        self, lpath: Any, rpath: str, callback: Callback = DEFAULT_CALLBACK, mode: str = "overwrite", **options: Any
    ) -> None:
        """Store a local file."""
        if Path(lpath).is_dir():
            return
        with _as_os_errors(rpath):
            callback.set_size(Path(lpath).stat().st_size)
            self.store.put(*self._split_file(rpath), Path(lpath), if_none_match="*" if mode == "create" else None)
            callback.absolute_update(Path(lpath).stat().st_size)

    def get_file(self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK, **options: Any) -> None:
        """Fetch a file into a local one, which appears whole."""
        if self.isdir(rpath):
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        with _as_os_errors(rpath):
            info = self.store.stat(*self._split_file(rpath))
            Path(lpath).parent.mkdir(parents=True, exist_ok=True)
            callback.set_size(info.size)
            get_file(self.store, info, Path(lpath), on_bytes=callback.relative_update)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Give a file a second name; no byte moves."""
        if self.isdir(path1):
            return
        with _as_os_errors(path1):
            self.store.copy(*self._split_file(path1), *self._split_file(path2))

    def touch(self, path: str, truncate: bool = True, **options: Any) -> None:
        """Make an empty file."""
        if not truncate and self.exists(path):
            raise NotImplementedError("the time of a file is when it was written; only truncate=True changes it")
        self.pipe_file(path, b"")

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> ForebayFile:
        self._split_file(path)
        return ForebayFile(
            self,
            path,
            mode,
            block_size=block_size or _BLOCK_BYTES,
            autocommit=autocommit,
            cache_options=cache_options,
            **options,
        )

    def _split(self, path: str) -> tuple[str, str]:
        bucket, _, key = str(self._strip_protocol(path)).partition("/")
        return bucket, key

    def _split_file(self, path: str) -> tuple[str, str]:
        bucket, key = self._split(path)
        if not key:
            raise IsADirectoryError(f"{path} is a bucket, and no file")
        return bucket, key

    def _bucket_info(self, bucket: str) -> Entry:
        if bucket:
            self.store.catalog.bucket(bucket)
        return _folder(bucket)

    def _children(self, bucket: str, prefix: str) -> Iterator[Entry]:
        cursor = None
        while True:
            page = self.store.list(bucket, prefix=prefix, delimiter="/", cursor=cursor)
            yield from (_folder(f"{bucket}/{folder.rstrip('/')}") for folder in page.prefixes)
            yield from map(_file, page.objects)
            cursor = page.cursor
            if cursor is None:
                return


class ForebayFile(AbstractBufferedFile):  # type: ignore[misc]
    """An object as an open file: for reading, pinned to one version; for writing, from the beginning."""

    def __init__(self, fs: ForebayFileSystem, path: str, mode: str, **options: Any) -> None:
        if mode not in ("rb", "wb", "xb"):
            raise ValueError(
                f"mode {mode!r}: an object is read (rb) or written anew (wb, xb); append by reading and writing it"
            )
        self._store = fs.store
        self._bucket, self._key = fs._split_file(path)
        if mode == "rb":
            with _as_os_errors(path):
                self._info = self._store.stat(self._bucket, self._key)
                self._reader = self._store.reader(self._info)
            options["size"] = self._info.size
        elif mode == "xb" and fs.exists(path):
            raise FileExistsError(path)  # Now, and not once all is written; the commit sees whoever comes meanwhile.
        super().__init__(fs, path, mode, **options)

    @property
    def details(self) -> Entry:
        """The entry of the version that is open."""
        return _file(self._info)

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self._info.size)
        data = bytearray(max(0, end - start))
        with _as_os_errors(self.path):
            self._reader.read_into(data, start=start)
        return bytes(data)

    def _initiate_upload(self) -> None:
        with _as_os_errors(self.path):
            self._upload = self._store.upload(self._bucket, self._key)

    def _upload_chunk(self, final: bool = False) -> bool:
        with _as_os_errors(self.path):
            self._upload.write(self.buffer.getbuffer())
            if final and self.autocommit:
                self.commit()
        return True

    def commit(self) -> None:
        """Make what was written visible."""
        with _as_os_errors(self.path):
            self._upload.commit(condition=Condition(if_none_match="*" if self.mode == "xb" else None))

    def discard(self) -> None:
        """Throw away what was written."""
        self._upload.__exit__(None, None, None)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None and self.writable() and not self.closed:  # type: ignore[has-type]
            # What was being written when something failed is no file. fsspec itself would make it one.
            if self.offset is not None:
                self.discard()
            self.closed = True
        self.close()


def _close(store: ObjectStore, pid: int) -> None:
    if pid == os.getpid():
        store.close()


def _file(info: ObjectInfo) -> Entry:
    return {
        "name": f"{info.bucket}/{info.key}",
        "size": info.size,
        "type": "file",
        "etag": info.etag,
        "version": info.version,
        "created": info.record.created_s,
    }


def _folder(name: str) -> Entry:
    return {"name": name, "size": 0, "type": "directory"}


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Errors of the store as those that users of files catch."""
    try:
        yield
    except (BucketNotFound, ObjectNotFound, SnapshotNotFound) as exc:
        raise FileNotFoundError(f"{path}: {exc.message}") from exc
    except (BucketExists, BucketNotEmpty, PreconditionFailed) as exc:
        raise FileExistsError(f"{path}: {exc.message}") from exc
    except Forbidden as exc:
        raise PermissionError(f"{path}: {exc.message}") from exc
