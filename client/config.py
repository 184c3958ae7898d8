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
from client.wire import parse_endpoint

__all__ = ["ClientConfig", "load_config"]

MIB = 1024 * 1024


class ClientConfig(BaseSettings):
    """Settings of the client. Each may be given as ``FOREBAY_<NAME>``; times in seconds, sizes in bytes."""

    # What was given may be a secret, so that errors do not repeat it.
    model_config = SettingsConfigDict(env_prefix="FOREBAY_", frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint: str = Field("http://127.0.0.1:7070", description="Addresses of nodes, comma separated")
    token: str | None = Field(None, repr=False, pattern=r"^[!-~]*$", description="Sent as a bearer token")
    chunk_size_bytes: int = Field(8 * MIB, ge=64 * 1024, le=64 * MIB, description="Size that objects are cut into")
    max_in_flight_chunks: int = Field(4, ge=1, le=256, description="Chunks under way at once, per transfer")
    max_threads: int = Field(16, ge=1, le=1024, description="Threads that move chunks, per client")
    max_connections: int = Field(256, ge=1, le=4096, description="Requests under way at once per endpoint; more fail as busy")
    max_idle_connections: int = Field(16, ge=0, le=1024, description="Kept alive per endpoint")
    connect_timeout_s: float = Field(
        2.0, gt=0, description="Longest wait for a connection, and for a look at the metadata while another node can be asked"
    )
    read_timeout_s: float = Field(15.0, gt=0, description="Longest silence of a node within one request")
    deadline_s: float = Field(60.0, gt=0, description="Longest time for one metadata call or one chunk, retries included")
    retry_base_s: float = Field(0.05, gt=0, description="First backoff; doubles, with full jitter")
    retry_max_s: float = Field(2.0, gt=0, description="Longest backoff")
    suspect_s: float = Field(5.0, gt=0, description="How long a node that failed, or was slow, is asked last")
    zone: str = Field("", description="This process's zone in the layout; by default that of the nodes on this host")
    hedge_least_s: float = Field(0.01, gt=0, description="No read counts as late, and no node as slow, before this")
    hedge_waste: float = Field(0.1, ge=0, le=1, description="Share of the bytes read that may be read in vain; 0: no hedging")
    hedge_burst_bytes: int = Field(16 * MIB, ge=0, description="As many may be read in vain at once")
    max_hedges: int = Field(8, ge=1, le=256, description="Reads that are asked of a second node at once")
    colocated: bool = Field(True, description="Read the files of nodes on this host directly, still checked")
    machine: str = Field("", description="This host's name in the layout; by default found out, else the host name")
    view_ttl_s: float = Field(30.0, gt=0, description="How long the list of nodes is taken for fresh")

    @field_validator("endpoint")
    @classmethod
    def _endpoints_valid(cls, value: str) -> str:
        urls = _split(value)
        if not urls:
            raise ValueError("no endpoint given; try http://127.0.0.1:7070")
        for url in urls:
            try:
                parse_endpoint(url)
            except Misconfigured as exc:
                raise ValueError(exc.message) from exc
        return value

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses in `endpoint`, one by one."""
        return _split(self.endpoint)


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
        origin = f"profile {profile!r} in {path}" if "endpoint" in values else origin
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
        faults = "; ".join(_fault(error["loc"], error["msg"], origin) for error in exc.errors())
        raise Misconfigured(f"the client's configuration is wrong: {faults}") from exc


def _split(endpoints: str) -> tuple[str, ...]:
    return tuple(url.strip().rstrip("/") for url in endpoints.split(",") if url.strip())


def _fault(loc: tuple[int | str, ...], message: str, origin: str) -> str:
    name = ".".join(map(str, loc))
    place = f" (from {origin})" if name == "endpoint" else ""
    return f"{name}{place}: {message.removeprefix('Value error, ')}"


def _read_profile(path: Path, profile: str) -> dict[str, Any]:
    try:
        section = tomllib.loads(path.read_text())["profiles"][profile]
    except FileNotFoundError as exc:
        raise Misconfigured(f"profile {profile!r} was asked for, but there is no config file {path}") from exc
    except OSError as exc:
        raise Misconfigured(f"the config file {path} can't be read: {exc.strerror}") from exc
    except ValueError as exc:  # of the TOML, or of its UTF-8
        raise Misconfigured(f"{path} is not valid TOML: {exc}") from exc
    except (KeyError, TypeError) as exc:
        raise Misconfigured(f"{path} has no section [profiles.{profile}]") from exc
    if not isinstance(section, dict):
        raise Misconfigured(f"{path}: profiles.{profile} is no section of settings")
    return section
