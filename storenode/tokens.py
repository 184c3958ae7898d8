"""Tokens: grants signed with the cluster's secret, as JSON Web Tokens (RFC 7519) under HMAC-SHA256.

Claims: ``iss`` forebay, ``sub`` the holder, ``iat`` and ``exp`` seconds since 1970, ``scopes`` as `storenode.grants` has them,
and perhaps ``aud``, the id of the one cluster that accepts it. A token without ``aud`` is good wherever its key is: a secret
belongs to one cluster, and the first token is made before there is a cluster with an id.

The algorithm is ours, whatever a token says of itself. Its beginning is not looked at, only its end: what a clock that runs
ahead has signed is genuine all the same.

Signatures are looked at once for each token; what they were found to grant is remembered until it ends.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

from client.errors import StoreError, Unauthenticated
from storenode.grants import EVERY, Grant, Scope
from storenode.secret import Secret

__all__ = ["HOW_TO_GET_ONE", "ISSUER", "MAX_TOKEN_BYTES", "NodeTokens", "Tokens", "claims_of", "mint", "signed_by"]

ISSUER = "forebay"
MAX_TOKEN_BYTES = 8 * 1024  # Servers bound the head of a request, and so must we.
_ALGORITHM = "HS256"
# `exp` is compared by us, with a clock that tests own, and the error says since when; see above for the others.
_CHECKS: dict[str, Any] = {
    "require": ["iss", "sub", "exp"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
}
HOW_TO_GET_ONE = (
    "`forebay token create` makes one, where the cluster's secret is; FOREBAY_TOKEN or a profile gives it to clients"
)


def mint(secret: Secret, grant: Grant, *, now_s: float, cluster_id: str | None = None) -> str:
    """A token for `grant`, for one cluster or for all that have this secret."""
    claims = {"iss": ISSUER, "iat": int(now_s), **grant.claims()}
    if cluster_id is not None:
        claims["aud"] = cluster_id
    return jwt.encode(claims, secret.keys[0], algorithm=_ALGORITHM)


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, genuine or not; raises `Unauthenticated` for what is no token."""
    try:
        return jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError as exc:
        raise Unauthenticated("this is no token of Forebay's: it can't be decoded") from exc


def signed_by(secret: Secret, token: str) -> dict[str, Any] | None:
    """The claims of a token that one of the keys has signed, expired or not; None for any other."""
    for key in secret.keys:
        try:
            return jwt.decode(token, key, algorithms=[_ALGORITHM], issuer=ISSUER, options=_CHECKS)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            continue
    return None


class Tokens:
    """Says what tokens grant. It belongs to the event loop.

    Parameters
    ----------
    cluster_id : str
        Of the cluster that this node is in.
    leeway_s : float
        How long after its end a token is still taken, for clocks that differ.
    max_known : int
        Tokens that are remembered.
    clock : callable
        Seconds since 1970.
    """

    def __init__(
        self, secret: Secret, *, cluster_id: str, leeway_s: float, max_known: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._cluster_id = cluster_id
        self._leeway_s = leeway_s
        self._max_known = max_known
        self._clock = clock
        self._known: OrderedDict[bytes, Grant] = OrderedDict()

    def known(self, token: bytes) -> Grant | None:
        """What a token grants that was seen before and has not expired."""
        grant = self._known.get(token)
        return None if grant is None or self._clock() > grant.expires_s + self._leeway_s else grant

    def grant(self, token: bytes) -> Grant:
        """What a token grants; raises `Unauthenticated`."""
        return self.known(token) or self._verified(token)

    def _verified(self, token: bytes) -> Grant:
        self._known.pop(token, None)
        claims = signed_by(self._secret, token.decode("latin-1")) if len(token) <= MAX_TOKEN_BYTES else None
        if claims is None:
            raise Unauthenticated(f"the token is not signed with this cluster's secret; {HOW_TO_GET_ONE}")
        try:
            grant = Grant.from_claims(claims)
        except StoreError as error:
            raise Unauthenticated(f"the token is signed, but can't be understood: {error.message}") from error
        self._check_still_good(claims, grant)
        self._known[token] = grant
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)
        return grant

    def _check_still_good(self, claims: Mapping[str, Any], grant: Grant) -> None:
        if claims.get("aud", self._cluster_id) != self._cluster_id:
            raise Unauthenticated(
                f"the token is for cluster {claims['aud']!r:.100}, and this is {self._cluster_id}; {HOW_TO_GET_ONE}"
            )
        now_s = self._clock()
        if now_s > grant.expires_s + self._leeway_s:
            raise Unauthenticated(
                f"the token of {grant.subject} expired at {_utc(grant.expires_s)}, and this node's clock says {_utc(now_s)}; "
                f"{HOW_TO_GET_ONE}"
            )


class NodeTokens:
    """A node's own tokens, for what it asks of others; renewed when half of its time is over. Thread-safe.

    Parameters
    ----------
    lifetime_s : float
        Of one token. Half of it is how far the clocks of nodes may differ.
    """

    def __init__(
        self,
        secret: Secret,
        *,
        subject: str,
        lifetime_s: float,
        cluster_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secret = secret
        self._subject = subject
        self._cluster_id = cluster_id
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._minted_s, self._token = self._mint(clock())

    def __call__(self) -> str:
        """A token with at least half of its time left."""
        now_s, (minted_s, token) = self._clock(), (self._minted_s, self._token)
        # Also if the clock was set back: by the new time the token may be one of the far future.
        if not 0 <= now_s - minted_s < self._lifetime_s / 2:
            self._minted_s, self._token = minted_s, token = self._mint(now_s)
        return token

    def _mint(self, now_s: float) -> tuple[float, str]:
        # They move chunks among each other. Names and administration go through the metadata, which has its own guard.
        scope = Scope.of(bucket=EVERY, verbs=("read", "write"))
        grant = Grant(subject=self._subject, scopes=(scope,), expires_s=now_s + self._lifetime_s)
        return now_s, mint(self._secret, grant, now_s=now_s, cluster_id=self._cluster_id)


def _utc(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_s:g} s since 1970"
