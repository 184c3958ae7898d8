"""Secrets and tokens for tests, with a clock that stands at `NOW_S`."""

from __future__ import annotations

from storenode.grants import Grant, Scope, Verb
from storenode.secret import Secret
from storenode.tokens import Tokens, mint

__all__ = ["NOW_S", "OTHER", "SECRET", "bearer", "make_token", "make_tokens"]

NOW_S = 1_800_000_000.0
SECRET, OTHER = Secret(b"the secret of the tests" * 3), Secret(b"that of any other cluster" * 3)


def make_tokens(secret: Secret = SECRET, *, max_known: int = 4, leeway_s: float = 10.0, now_s: float = NOW_S) -> Tokens:
    """What a node of cluster c1 takes tokens for."""
    return Tokens(secret, cluster_id="c1", leeway_s=leeway_s, max_known=max_known, clock=lambda: now_s)


def make_token(
    *verbs: Verb,
    bucket: str = "data",
    prefix: str = "",
    expires_s: float = NOW_S + 60,
    secret: Secret = SECRET,
    cluster_id: str | None = None,
) -> str:
    """A token for these verbs, or for nothing."""
    scopes = (Scope.of(bucket=bucket, verbs=verbs, prefix=prefix),) if verbs else ()
    grant = Grant(subject="tester", scopes=scopes, expires_s=expires_s)
    return mint(secret, grant, now_s=NOW_S, cluster_id=cluster_id)


def bearer(token: str) -> dict[str, str]:
    """The header that carries it."""
    return {"authorization": f"Bearer {token}"}
