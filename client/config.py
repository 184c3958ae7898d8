"""The client's configuration: read once, validated at start, every bound named.

Precedence: arguments, then ``FOREBAY_*`` variables, then the profile in the config file (``FOREBAY_CONFIG``, else
``~/.config/forebay/config.toml``, sections ``[profiles.NAME]``), then the defaults below. Proxy variables are ignored.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from client.errors import Misconfigured

__all__ = ["ClientConfig", "load_config"]

MIB = 1024 * 1024


class ClientConfig(BaseSettings):
    """Settings of the client. Each may be given as ``FOREBAY_<NAME>``; times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="FOREBAY_", frozen=True, extra="forbid")

    endpoint: str = Field("http://127.0.0.1:7070", description="Addresses of nodes, comma separated")
    token: str | None = Field(None, repr=False, description="Sent as a bearer token")
    chunk_size_bytes: int = Field(8 * MIB, ge=64 * 1024, le=64 * MIB, description="Size that objects are cut into")
    max_in_flight_chunks: int = Field(4, ge=1, le=256, description="Chunks under way at once, per transfer")
    max_threads: int = Field(16, ge=1, le=1024, description="Threads that move chunks, per client")
    max_idle_connections: int = Field(16, ge=0, le=1024, description="Kept alive per endpoint")
    connect_timeout_s: float = Field(2.0, gt=0)
    read_timeout_s: float = Field(15.0, gt=0, description="Longest silence of a node within one request")
    deadline_s: float = Field(60.0, gt=0, description="Longest time for one metadata call or one chunk, retries included")
    retry_base_s: float = Field(0.05, gt=0, description="First backoff; doubles, with full jitter")
    retry_max_s: float = Field(2.0, gt=0, description="Longest backoff")
    suspect_s: float = Field(5.0, gt=0, description="How long a node that failed is asked last")
    view_ttl_s: float = Field(30.0, gt=0, description="How long the list of nodes is taken for fresh")

    @field_validator("endpoint")
    @classmethod
    def _endpoint_given(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("no endpoint given; try http://127.0.0.1:7070")
        return value


def load_config(
    *, endpoints: str | list[str] | None = None, token: str | None = None, profile: str | None = None
) -> tuple[ClientConfig, str]:
    """The configuration, and in words where its endpoints came from (for error messages).

    Raises
    ------
    Misconfigured
        For a profile that does not exist, or a value out of bounds.
    """
    values: dict[str, Any] = {}
    profile = profile or os.environ.get("FOREBAY_PROFILE")
    origin = "the default"
    if profile:
        path = Path(os.environ.get("FOREBAY_CONFIG", "~/.config/forebay/config.toml")).expanduser()
        values = _read_profile(path, profile)
        origin = f"profile {profile!r} in {path}"
    # Variables win over the profile, which pydantic would read the other way round.
    values = {k: v for k, v in values.items() if f"FOREBAY_{k.upper()}" not in os.environ}
    if "FOREBAY_ENDPOINT" in os.environ:
        origin = "FOREBAY_ENDPOINT"
    if endpoints is not None:
        values["endpoint"] = endpoints if isinstance(endpoints, str) else ",".join(endpoints)
        origin = "the endpoints argument"
    if token is not None:
        values["token"] = token
    try:
        return ClientConfig(**values), origin
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise Misconfigured(f"the client's configuration is wrong: {faults}") from exc


def _read_profile(path: Path, profile: str) -> dict[str, Any]:
    try:
        profiles = tomllib.loads(path.read_text())["profiles"]
        return dict(profiles[profile])
    except FileNotFoundError as exc:
        raise Misconfigured(f"profile {profile!r} was asked for, but there is no config file {path}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise Misconfigured(f"{path} is not valid TOML: {exc}") from exc
    except KeyError as exc:
        raise Misconfigured(f"{path} has no section [profiles.{profile}]") from exc
