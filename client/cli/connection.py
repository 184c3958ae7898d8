"""What the options before the command say: where the cluster is, and how much to tell."""

from __future__ import annotations

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


def connect(ctx: typer.Context) -> Client:
    """The client that the global options ask for; use it as a context manager."""
    settings = ctx.find_object(Settings) or Settings()
    endpoints = None if settings.endpoints is None else list(settings.endpoints)
    return Client(endpoints, token=settings.token, profile=settings.profile)
