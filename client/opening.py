"""The answer to a read that begins with a name: the record, and with it the first bytes if the node has them.

See `storenode.reads` for the other side. Bytes that came along are checked against the reference in the record, as those from
the chunk routes are. If they are not right, or none came, the read goes on as if only the record had come: the verified read
then asks the replicas. That a copy is bad is said, for whoever tells the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from client.catalog import Opened
from client.checksum import SEGMENT_BYTES, ReadCheck
from client.errors import ProtocolMismatch
from client.record import ObjectInfo
from client.wire import RECORD_HEADER, announced_checks, decode_json, widen

__all__ = ["Opening"]

_NOTHING = memoryview(bytearray())


class Opening:
    """Receives one such answer: what `client.transport.Transport.request` takes as ``into``, and its `seen`.

    Parameters
    ----------
    start : int
        First byte of the read.
    place : callable
        Gives the buffer for the bytes that are read, once the record is known.
    """

    def __init__(self, *, start: int, place: Callable[[ObjectInfo], memoryview]) -> None:
        self._start = start
        self._place = place
        self._check: ReadCheck | None = None
        self._whole = False

    def __call__(self, headers: Mapping[str, str], size_bytes: int) -> memoryview | None:
        """Where the body goes; None if it is the record itself."""
        self._check = None
        record = headers.get(RECORD_HEADER)
        if record is None:
            return None
        self.take_record(record)
        found = self.info.record.content.chunk_at(self._start)
        if found is None or not size_bytes:
            return _NOTHING[:size_bytes]
        ref, offset = found
        self._ref, self._headers = ref, headers
        low, high = self._start - offset, min(self._start - offset + len(self.buffer), ref.size)
        wide_start, wide_end = (0, ref.size) if ref.size <= SEGMENT_BYTES else widen(low, high, size_bytes=ref.size)
        if size_bytes != wide_end - wide_start:
            raise ProtocolMismatch(f"{size_bytes} bytes came of chunk {ref}, where {wide_end - wide_start} were expected")
        self._low, self._high = low - wide_start, high - wide_start
        exact = (wide_start, wide_end) == (low, high)
        self._body = self.buffer[: high - low] if exact else memoryview(bytearray(size_bytes))
        self._whole = size_bytes == ref.size
        self._check = ReadCheck(whole=self._whole)
        return self._body

    def seen(self, part: memoryview) -> None:
        """Take note of the next bytes that have come into the buffer."""
        if self._whole and self._check is not None:
            self._check.update(part)

    def take_record(self, record: str | bytes) -> None:
        """Take the record from where it came, and have the buffer made."""
        self.info = ObjectInfo.from_json(decode_json(record))
        self.buffer = self._place(self.info)

    def opened(self) -> Opened:
        """What came of it, after the answer has been received."""
        if self._check is None:
            return Opened(info=self.info, buffer=self.buffer)
        if not self._whole:
            self._check.update(self._body)  # Only now: what comes at once is not cut where segments are.
        if not self._check.matches(self._ref.check, announced_checks(self._headers)):
            return Opened(info=self.info, buffer=self.buffer, corrupt=self._ref)
        count = self._high - self._low
        if len(self._body) != count:
            self.buffer[:count] = self._body[self._low : self._high]
        return Opened(info=self.info, buffer=self.buffer, filled=count)
