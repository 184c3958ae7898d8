"""Which metadata engine, and how to reach it: settings that nodes and the commands on metadata share.

Each may be given as ``FOREBAY_<NAME>``; times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from client.errors import Misconfigured
from storenode.etcd import EtcdMetaStore
from storenode.etcd_address import ETCD_FORM, EtcdAddress
from storenode.etcd_connections import tls_context
from storenode.metastore import MetaStore
from storenode.sqlite import SqliteMetaStore

__all__ = ["EngineConfig", "load_engine_config", "named_faults", "open_engine"]

SQLITE_SCHEME = "sqlite:///"


class EngineConfig(BaseSettings):
    """Settings of the metadata engine."""

    model_config = SettingsConfigDict(env_prefix="FOREBAY_", frozen=True, extra="forbid", hide_input_in_errors=True)

    meta: str = Field(description=f"Metadata engine: sqlite:///relative/path, sqlite:////absolute/path or {ETCD_FORM}")
    metadata_timeout_s: float = Field(5.0, gt=0, description="How long a call waits for the engine, and for a turn with it")
    max_etcd_connections: int = Field(64, ge=4, le=4096, description="To etcd; each call and each watch has one")
    etcd_user: str = Field("", description="Who may read and write under the prefix, if etcd asks")
    etcd_password: SecretStr = Field(SecretStr(""), description="That user's")
    etcd_ca_file: Path | None = Field(None, description="Authorities that etcds:// trusts; by default the system's")
    etcd_cert_file: Path | None = Field(None, description="This node's certificate, if etcd asks for one")
    etcd_key_file: Path | None = Field(None, description="Its key, unless it is in the same file")

    @field_validator("meta")
    @classmethod
    def _meta_is_known(cls, value: str) -> str:
        if value.startswith(("etcd://", "etcds://")):
            EtcdAddress.parse(value)
        elif not value.startswith(SQLITE_SCHEME) or len(value) == len(SQLITE_SCHEME):
            # Shown without what could be a password.
            raise ValueError(f"expected {SQLITE_SCHEME}PATH or {ETCD_FORM}, found {value.rpartition('@')[2]!r}")
        return value

    @property
    def meta_engine(self) -> Path | EtcdAddress:
        """Where the metadata is: in an SQLite file, or in etcd."""
        if self.meta.startswith(SQLITE_SCHEME):
            return Path(self.meta.removeprefix(SQLITE_SCHEME))
        return EtcdAddress.parse(self.meta)


def load_engine_config(**settings: Any) -> EngineConfig:
    """The configuration from `settings`, and for what they leave out from the environment; raises `Misconfigured`."""
    with named_faults("the configuration of the metadata engine"):
        return EngineConfig(**settings)


def open_engine(config: EngineConfig, *, create: bool = False) -> MetaStore:
    """The engine that `config` names. Raises `Misconfigured`.

    Parameters
    ----------
    create : bool
        Whether an SQLite file may be missing, and is made then.
    """
    engine = config.meta_engine
    if isinstance(engine, EtcdAddress):
        files = {"ca_file": config.etcd_ca_file, "cert_file": config.etcd_cert_file, "key_file": config.etcd_key_file}
        return EtcdMetaStore(
            engine,
            timeout_s=config.metadata_timeout_s,
            max_connections=config.max_etcd_connections,
            user=config.etcd_user,
            password=config.etcd_password.get_secret_value(),
            tls=tls_context(**files) if engine.tls else None,
        )
    # Opening would make an empty file, and where the metadata was lost or misplaced that must not look like a new start.
    if not create and not engine.exists():
        raise Misconfigured(
            f"there is no metadata at {engine}; `forebay up --data DIR` creates a cluster, FOREBAY_META names one"
        )
    return SqliteMetaStore(engine, busy_timeout_s=config.metadata_timeout_s)


@contextmanager
def named_faults(what: str) -> Iterator[None]:
    """Turn the error of a block that validates settings into one that names each of them, its variable and its fault."""
    try:
        yield
    except ValidationError as exc:
        faults = "; ".join(_fault(error["loc"], error["msg"]) for error in exc.errors())
        raise Misconfigured(f"{what} is wrong: {faults}") from exc


def _fault(place: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, place))
    return f"{name} (FOREBAY_{name.upper()}): {message}" if name else message
