"""Content by byte range: which chunks a range touches, read verified, in parallel and in order.

`ContentReader` walks the manifest tree as far as a range needs it and keeps a few manifests. `ObjectFile` makes a seekable
file of it. Both hold a fixed number of chunks at most, whatever the object's size.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from typing_extensions import Buffer

from client.errors import InvalidRange
from client.manifest import Entry, Manifest, Ref
from client.record import Content
from client.replica import ReplicaReader
from client.retry import Backoff, Deadline, retrying

__all__ = ["ContentReader", "ObjectFile", "Span"]

_MAX_CACHED_MANIFESTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Bytes ``[start, end)`` of the chunk `ref`, which are the content's bytes from `offset` on."""

    ref: Ref
    start: int
    end: int
    offset: int


class ContentReader:
    """Reads the content of one version of an object. Thread-safe.

    Parameters
    ----------
    content : Content
        From the object's record.
    replicas : int
        From the record, too.
    reader : ReplicaReader
        The verified read.
    executor : Executor
        Runs the reads; shared.
    max_in_flight : int
        Chunks read at once by `read_into` and ahead by `stream`.
    backoff : Backoff
        Between rounds over all replicas.
    deadline_s : float
        For one chunk.
    """

    def __init__(
        self,
        content: Content,
        *,
        replicas: int,
        reader: ReplicaReader,
        executor: Executor,
        max_in_flight: int,
        backoff: Backoff,
        deadline_s: float,
    ) -> None:
        self.content = content
        self.replicas = replicas
        self._reader = reader
        self._executor = executor
        self._max_in_flight = max_in_flight
        self._backoff = backoff
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._manifests: OrderedDict[bytes, Manifest] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.content.size

    def spans(self, start: int, end: int) -> Iterator[Span]:
        """The pieces of chunks that make up content bytes ``[start, end)``, in order.

        Raises
        ------
        InvalidRange
            Unless ``0 <= start <= end <= size``.
        """
        if not 0 <= start <= end <= self.size:
            raise InvalidRange(f"bytes {start} to {end} of an object of {self.size} bytes")
        for offset, entry in self._leaves(start, end):
            low, high = max(start, offset), min(end, offset + entry.content_bytes)
            yield Span(ref=entry.ref, start=low - offset, end=high - offset, offset=low)

    def read_into(self, buffer: Buffer, *, start: int = 0) -> int:
        """Fill `buffer` with content bytes from `start` on; returns the number of bytes, which is its length.

        Chunks are received straight into the buffer, a few at a time. When it raises, the buffer's contents are
        worthless.
        """
        view = memoryview(buffer).cast("B")
        spans = self.spans(start, start + len(view))
        first = next(spans, None)
        if first is not None and first.end - first.start == len(view):
            self._read_span(first, view)  # The common case costs no thread.
            return len(view)
        pending: deque[Future[None]] = deque()
        try:
            while first is not None:
                if len(pending) >= self._max_in_flight:
                    pending.popleft().result()
                place = first.offset - start
                part = view[place : place + first.end - first.start]
                pending.append(self._executor.submit(self._read_span, first, part))
                first = next(spans, None)
            while pending:
                pending.popleft().result()
        finally:
            # After an error nothing may go on writing into a buffer that the caller has back.
            _settle(pending)
        return len(view)

    def stream(self, start: int = 0, end: int | None = None) -> Generator[bytearray, None, None]:
        """Content bytes ``[start, end)`` in order, verified, in pieces of at most a chunk, reading ahead."""
        pending: deque[Future[bytearray]] = deque()
        try:
            for span in self.spans(start, self.size if end is None else end):
                if len(pending) >= self._max_in_flight:
                    yield pending.popleft().result()
                pending.append(self._executor.submit(self._read, span))
            while pending:
                yield pending.popleft().result()
        finally:
            _settle(pending)

    def refs(self) -> Iterator[Ref]:
        """Every chunk that the content needs, manifests included, parents first."""
        if self.content.manifest is None:
            yield from self.content.refs
            return
        yield from self._refs_below(self.content.manifest)

    def _refs_below(self, ref: Ref) -> Iterator[Ref]:
        yield ref
        manifest = self._manifest(ref)
        for entry in manifest.entries:
            if manifest.level:
                yield from self._refs_below(entry.ref)
            else:
                yield entry.ref

    def _leaves(self, start: int, end: int) -> Iterator[tuple[int, Entry]]:
        if start == end:
            return
        if self.content.manifest is None:
            entries = tuple(Entry(ref=ref, content_bytes=ref.size) for ref in self.content.refs)
            yield from Manifest(level=0, entries=entries).covering(start, end)
            return
        yield from self._descend(self.content.manifest, start, end, base=0)

    def _descend(self, ref: Ref, start: int, end: int, *, base: int) -> Iterator[tuple[int, Entry]]:
        manifest = self._manifest(ref)
        for offset, entry in manifest.covering(start - base, end - base):
            if manifest.level:
                yield from self._descend(entry.ref, start, end, base=base + offset)
            else:
                yield base + offset, entry

    def _manifest(self, ref: Ref) -> Manifest:
        with self._lock:
            cached = self._manifests.get(ref.id)
            if cached is not None:
                self._manifests.move_to_end(ref.id)
                return cached
        manifest = Manifest.decode(bytes(self._read(Span(ref=ref, start=0, end=ref.size, offset=0))))
        with self._lock:
            self._manifests[ref.id] = manifest
            while len(self._manifests) > _MAX_CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return manifest

    def _read(self, span: Span) -> bytearray:
        data = bytearray(span.end - span.start)
        self._read_span(span, memoryview(data))
        return data

    def _read_span(self, span: Span, part: memoryview) -> None:
        # A round over the replicas may fall into the moment in which a node restarts, so rounds repeat for a while.
        retrying(
            lambda: self._reader.read_into(span.ref, part, replicas=self.replicas, start=span.start),
            backoff=self._backoff,
            deadline=Deadline(self._deadline_s),
        )


class ObjectFile(io.RawIOBase):
    """A seekable, read-only file of an object's content. Wrap it in `io.BufferedReader` for small reads."""

    def __init__(self, reader: ContentReader, *, name: str) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0
        self.name = name

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`, as `io.IOBase.seek`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Read up to ``len(buffer)`` bytes; 0 at the end."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._reader.size - self._position))
        if count:
            self._reader.read_into(view[:count], start=self._position)
            self._position += count
        return count


def _settle(pending: deque[Future[None]] | deque[Future[bytearray]]) -> None:
    for future in pending:
        future.cancel()
    for future in pending:
        if not future.cancelled():
            future.exception()
