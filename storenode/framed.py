"""Answers of frames, as `client.frames` has them, made part by part while they are sent: one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from client.errors import StoreError
from client.frames import OBJECTS_MAGIC
from storenode.bodies import BodySender, ResponseAborted
from storenode.budget import Budget
from storenode.threads import BoundedPool

__all__ = ["FRAMES_TYPE", "Frames"]

FRAMES_TYPE = "application/vnd.forebay.frames"

T = TypeVar("T")


class Frames(Response, Generic[T]):
    """The answer to a batch.

    Parameters
    ----------
    parts : sequence
        Of what was asked for, at least one.
    make : callable
        Appends the frames of a part to a buffer; it may raise only for all of them.
    pool : BoundedPool
        In which `make` runs.
    room : Budget
        Of answers of this kind under way.
    stall_timeout_s : float
        How long the client may take for one piece.
    """

    media_type = FRAMES_TYPE

    def __init__(
        self,
        parts: Sequence[T],
        *,
        make: Callable[[T, bytearray], None],
        pool: BoundedPool,
        room: Budget,
        stall_timeout_s: float,
    ) -> None:
        super().__init__()
        # How long it gets is not known before the last item is read.
        del self.headers["content-length"]
        self._parts = parts
        self._make = make
        self._pool = pool
        self._room = room
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = BodySender(send, stall_timeout_s=self._stall_timeout_s)
        begun = False
        with self._room.take():
            for part in self._parts:
                frames = bytearray(b"" if begun else OBJECTS_MAGIC)
                try:
                    await self._pool.run_to_end(self._make, part, frames)
                except StoreError as error:
                    if begun:
                        raise ResponseAborted(f"a later part of a batch failed: {error.title}: {error.message}") from error
                    raise
                if not begun:
                    # Only now, so that a node without metadata or disk says so, and the client asks another one.
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    begun = True
                await sender.piece(frames)
            await sender.end()
