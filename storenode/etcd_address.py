"""Where an etcd cluster answers, and where among its keys ours lie: the grammar of one setting. Pure.

    etcd[s]://HOST:PORT[,HOST:PORT...][/PREFIX]

Any member answers for all, so the list is for failover and its order a preference. All keys begin with ``PREFIX/``, so that
several clusters may share one etcd. Names and passwords are settings of their own: an address is shown in errors and logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["ETCD_FORM", "Endpoint", "EtcdAddress"]

ETCD_FORM = "etcd://HOST:PORT[,HOST:PORT...][/PREFIX]"
DEFAULT_PREFIX = "forebay"
# Short, because it counts in every operation; without a slash, because that is its end.
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The client address of a member; an IPv6 host without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdAddress:
    """What the setting says."""

    endpoints: tuple[Endpoint, ...]
    prefix: str = DEFAULT_PREFIX
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> EtcdAddress:
        """The address in `url`; raises `ValueError`, which says what is wrong and shows no credentials."""
        if "@" in url:
            raise ValueError(f"expected {ETCD_FORM}; a name and a password are given by etcd_user and etcd_password")
        scheme, _, rest = url.partition("://")
        hosts, slash, prefix = rest.partition("/")
        if scheme not in ("etcd", "etcds") or (slash and not _PREFIX.fullmatch(prefix)):
            raise ValueError(f"expected {ETCD_FORM}, PREFIX of at most 32 letters, digits, '.', '_' and '-'; found {url!r}")
        endpoints = tuple(_endpoint(text, url=url) for text in hosts.split(","))
        return cls(endpoints=endpoints, prefix=prefix or DEFAULT_PREFIX, tls=scheme == "etcds")

    def __str__(self) -> str:
        return f"{'etcds' if self.tls else 'etcd'}://{','.join(map(str, self.endpoints))}/{self.prefix}"


def _endpoint(text: str, *, url: str) -> Endpoint:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.port and not (parts.path or parts.query or parts.fragment):
            return Endpoint(host=parts.hostname, port=parts.port)
    except ValueError:  # no number as a port, or half of an IPv6 address
        pass
    raise ValueError(f"expected {ETCD_FORM}, found {text!r} for HOST:PORT in {url!r}; an IPv6 host has brackets")
