"""What the holder of a token may do: verbs on the keys of buckets. Pure.

A grant is a number of scopes, and what one of them allows is allowed. A scope names a bucket, or all of them with ``*``; verbs,
of which none includes another; and perhaps a prefix, which is text and no folder: ``run-1`` covers ``run-10/x``, too, and
``run-1/`` does not.

What is asked is a verb on a name in a bucket. A key is its own name, a listing is named by its prefix, and the bucket itself by
the empty name: so a scope with a prefix allows listings below it, and nothing that concerns the whole bucket. The whole cluster
is named by the bucket ``*``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from client.errors import Forbidden, InvalidRequest
from client.names import check_bucket, check_prefix

__all__ = ["EVERY", "VERBS", "Grant", "Scope", "Verb", "everything"]

Verb = Literal["read", "write", "delete", "admin"]
VERBS: tuple[Verb, ...] = get_args(Verb)
EVERY = "*"
_SHOWN_SCOPES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Verbs on a part of the names.

    Attributes
    ----------
    bucket : str
        Its name, or ``*`` for all.
    verbs : frozenset of str
        Of `VERBS`.
    prefix : str
        What keys begin with; empty: all keys, and the bucket itself.
    """

    bucket: str
    verbs: frozenset[Verb]
    prefix: str = ""

    @classmethod
    def of(cls, *, bucket: str, verbs: Iterable[str], prefix: str = "") -> Scope:
        """A scope of these; raises `InvalidRequest` or `InvalidName` for one that could not be meant."""
        named = list(verbs)
        known = frozenset(verb for verb in VERBS if verb in named)
        if not known or not set(named) <= known:
            raise InvalidRequest(f"verbs {', '.join(named)[:100]!r}: use {', '.join(VERBS)}, one or more of them")
        if "admin" in known and prefix:
            raise InvalidRequest(f"admin is for whole buckets, and would mean nothing below the prefix {prefix[:100]!r}")
        return cls(bucket=bucket if bucket == EVERY else check_bucket(bucket), verbs=known, prefix=check_prefix(prefix))

    def covers(self, bucket: str, name: str) -> bool:
        """Whether this is about `name` in `bucket`."""
        return self.bucket in (EVERY, bucket) and name.startswith(self.prefix)

    def to_json(self) -> dict[str, Any]:
        """The scope as a token's claims hold it."""
        value: dict[str, Any] = {"bucket": self.bucket, "verbs": [verb for verb in VERBS if verb in self.verbs]}
        return {**value, "prefix": self.prefix} if self.prefix else value

    @classmethod
    def from_json(cls, value: Any) -> Scope:
        """The inverse; raises `InvalidRequest` also for what a later release may have added, which could be a restriction."""
        match value:
            case {"bucket": str(bucket), "verbs": list(verbs), **rest} if all(isinstance(verb, str) for verb in verbs):
                prefix = rest.pop("prefix", "")
                if isinstance(prefix, str) and not rest:
                    return cls.of(bucket=bucket, verbs=verbs, prefix=prefix)
        raise InvalidRequest(f"scope {value!r:.200}: expected bucket, verbs and perhaps prefix")

    def __str__(self) -> str:
        verbs = ", ".join(verb for verb in VERBS if verb in self.verbs)
        return f"{verbs} on {_shown(self.bucket, self.prefix)}{EVERY if self.prefix else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a token says, once it is known to be genuine.

    Attributes
    ----------
    subject : str
        Who holds it; for people, nothing depends on it.
    expires_s : float
        Seconds since 1970.
    """

    subject: str
    scopes: tuple[Scope, ...]
    expires_s: float

    def allows(self, verb: Verb, bucket: str, name: str = "") -> bool:
        """Whether `verb` is allowed on a name: a key, the prefix of a listing, or nothing for the bucket itself."""
        return any(verb in scope.verbs and scope.covers(bucket, name) for scope in self.scopes)

    def allows_somewhere(self, verb: Verb) -> bool:
        """Whether there is anything on which `verb` is allowed."""
        return any(verb in scope.verbs for scope in self.scopes)

    def sees(self, bucket: str) -> bool:
        """Whether anything at all is allowed in a bucket, so that its policy is no secret."""
        return any(scope.bucket in (EVERY, bucket) for scope in self.scopes)

    def require(self, verb: Verb, bucket: str, name: str = "") -> None:
        """Raise `Forbidden` unless `allows`."""
        if not self.allows(verb, bucket, name):
            raise self.refusal(f"{verb} on {_shown(bucket, name)}", key=f"{bucket}/{name}" if name else bucket)

    def refusal(self, needed: str, *, key: str | None = None) -> Forbidden:
        """The error that says what would have been `needed` and what is there."""
        shown = "; ".join(map(str, self.scopes[:_SHOWN_SCOPES])) or "nothing"
        more = f"; and {len(self.scopes) - _SHOWN_SCOPES} more" if len(self.scopes) > _SHOWN_SCOPES else ""
        return Forbidden(
            f"this needs {needed}, and the token of {self.subject} allows {shown}{more}; `forebay token create` makes another, "
            "where the cluster's secret is",
            key=key,
        )

    def claims(self) -> dict[str, Any]:
        """What a token says of this."""
        return {"sub": self.subject, "exp": int(self.expires_s), "scopes": [scope.to_json() for scope in self.scopes]}

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> Grant:
        """The inverse of `claims`; raises `InvalidRequest`."""
        match claims:
            case {"sub": str(subject), "exp": int(expires_s), "scopes": list(scopes)} if not isinstance(expires_s, bool):
                return cls(subject=subject, scopes=tuple(map(Scope.from_json, scopes)), expires_s=expires_s)
        raise InvalidRequest("expected sub, exp and scopes")


def everything() -> Scope:
    """All verbs on all buckets."""
    return Scope(bucket=EVERY, verbs=frozenset(VERBS))


def _shown(bucket: str, name: str) -> str:
    place = "all buckets" if bucket == EVERY else bucket
    return f"{place}/{name[:200]}" if name else place
