"""Which chunks a node holds durably already: asked before they are sent, for all that wait at the moment in one call.

Whoever asks while a call to the same node is under way waits for its end, and one of those who wait then asks for all of them.
So a lone chunk is asked for at once, and many chunks cost few calls.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict

from client.chunks import MAX_REFS_PER_CALL, ChunkClient
from client.errors import StoreError
from client.manifest import Ref

__all__ = ["Touches"]

log = logging.getLogger(__name__)


class Touches:
    """Asks nodes about chunks. Thread-safe."""

    def __init__(self, chunks: ChunkClient) -> None:
        self._chunks = chunks
        self._changed = threading.Condition()
        self._waiting: dict[str, list[_Question]] = defaultdict(list)
        self._asking: set[str] = set()

    def holds(self, node_id: str, ref: Ref, *, epoch: int) -> bool:
        """Whether the node has re-hashed a copy, tagged it and made it durable; False also if it can't be asked."""
        mine = _Question(ref, epoch)
        with self._changed:
            self._waiting[node_id].append(mine)
        while True:
            with self._changed:
                while node_id in self._asking and mine.answer is None:
                    self._changed.wait()  # For a call that has a timeout of its own.
                if mine.answer is not None:
                    return mine.answer
                asked = self._waiting[node_id][:MAX_REFS_PER_CALL]
                del self._waiting[node_id][:MAX_REFS_PER_CALL]
                self._asking.add(node_id)
            self._ask(node_id, asked)

    def _ask(self, node_id: str, asked: list[_Question]) -> None:
        answers = [False] * len(asked)
        try:
            # A tag may be newer than asked for.
            epoch = max(question.epoch for question in asked)
            answers = self._chunks.touch(node_id, [question.ref for question in asked], epoch=epoch)
        except StoreError as error:
            # Then they are sent. That the node does not answer is noted, so that it is asked last to take them.
            log.info("node %s could not be asked which chunks it holds: %s", node_id, error.message)
        finally:
            with self._changed:
                for question, answer in zip(asked, answers, strict=True):
                    question.answer = answer
                self._asking.discard(node_id)
                self._changed.notify_all()


class _Question:
    """One chunk that somebody asks about; the answer is None until it is known."""

    __slots__ = ("answer", "epoch", "ref")

    def __init__(self, ref: Ref, epoch: int) -> None:
        self.ref = ref
        self.epoch = epoch
        self.answer: bool | None = None
