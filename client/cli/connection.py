"""What the options before the command say: where the cluster is, and how much to tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from client.client import Client

__all__ = ["Settings", "connect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The global options. None stands for what the environment, the profile and the defaults say."""

    endpoints: tuple[str, ...] | None = None
    token: str | None = None
    profile: str | None = None
    verbose: bool = False


@contextmanager
def connect(ctx: typer.Context) -> Iterator[Client]:
    """The client that the global options ask for, closed at the end of the block."""
    settings = ctx.find_object(Settings) or Settings()
    endpoints = None if settings.endpoints is None else list(settings.endpoints)
    client = Client(endpoints, token=settings.token, profile=settings.profile)
    try:
        yield client
    except KeyboardInterrupt:
        # To close it is to wait for its threads, and one of them may wait for a silent node. The process ends anyway.
        raise
    except BaseException:
        client.close()
        raise
    client.close()
