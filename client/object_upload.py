"""One object written piece by piece: its chunks go out as they fill, and its name comes last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from typing_extensions import Buffer

from client.catalog import Commit
from client.record import Condition, ObjectInfo, ObjectRecord
from client.upload import Upload

__all__ = ["ObjectUpload"]


class ObjectUpload:
    """An object being written. Nothing is visible before `commit`; leaving the context without it aborts.

    Use: ``with store.upload(bucket, key) as upload: upload.write(...); info = upload.commit()``.
    """

    def __init__(
        self, commit: Callable[[Commit], ObjectInfo], upload: Upload, *, bucket: str, key: str, record: ObjectRecord
    ) -> None:
        self._commit = commit
        self._upload = upload
        self._bucket = bucket
        self._key = key
        self._record = record

    def write(self, piece: Buffer) -> None:
        """Append bytes of any number; they are copied."""
        self._upload.write(piece)

    def write_owned(self, payload: Buffer) -> None:
        """Append one chunk that nobody changes until the upload has ended; it is not copied."""
        self._upload.write_owned(payload)

    def commit(self, *, condition: Condition | None = None) -> ObjectInfo:
        """Wait until the bytes are durable, then give them the name."""
        record = replace(self._record, content=self._upload.finish())
        return self._commit(Commit(bucket=self._bucket, key=self._key, record=record, condition=condition or Condition()))

    def __enter__(self) -> ObjectUpload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._upload.abort()
