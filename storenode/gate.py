"""Where every request shows its token. A node without a secret lets everybody in, as if they had one for everything.

What a request's token grants goes on in its scope, for the routes that judge names by themselves.
"""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from client.errors import Unauthenticated
from storenode.grants import EVERY, Grant, everything
from storenode.permissions import Need, needed
from storenode.requests import bucket_name, object_name
from storenode.tokens import HOW_TO_GET_ONE, Tokens

__all__ = ["Gate", "GrantOf"]

_GRANT = "forebay.grant"
_ANYBODY = Grant(subject="anybody", scopes=(everything(),), expires_s=math.inf)
_SCHEME = b"bearer "


async def _grant_of(request: Request) -> Grant:
    grant: Grant = request.scope[_GRANT]
    return grant


GrantOf = Annotated[Grant, Depends(_grant_of)]


class Gate:
    """Admits requests.

    Parameters
    ----------
    tokens : Tokens or None
        Says what they grant; None without a secret.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    def known(self, token: bytes | None) -> Grant | None:
        """What a token grants if that is known already. None is for `admit`, which says why."""
        if self._tokens is None:
            return _ANYBODY
        return None if token is None else self._tokens.known(token)

    def admit(self, scope: Scope) -> None:
        """Let a request in that is allowed what it asks, and note what its token grants.

        Raises
        ------
        Unauthenticated
            It has no token that is genuine and still good.
        Forbidden
            The token does not allow this.
        """
        if self._tokens is None:
            scope[_GRANT] = _ANYBODY
            return
        need = needed(scope["method"], scope["path"])
        if need.of != "nothing":
            grant = scope[_GRANT] = self._tokens.grant(_token_in(scope))
            _check(grant, need, scope["path"])


def _check(grant: Grant, need: Need, path: str) -> None:
    if need.of == "object":
        grant.require(need.verb, *object_name(path))
    elif need.of == "bucket":
        grant.require(need.verb, bucket_name(path))
    elif need.of == "sight":
        if not grant.sees(bucket := bucket_name(path)):
            raise grant.refusal(f"some verb on {bucket}", key=bucket)
    elif need.of == "something":
        if not grant.allows_somewhere(need.verb):
            raise grant.refusal(f"{need.verb} on some bucket")
    elif need.of == "cluster":
        grant.require(need.verb, EVERY)


def _token_in(scope: Scope) -> bytes:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        what = "none" if not values else "several" if len(values) > 1 else "an Authorization of another kind"
        raise Unauthenticated(
            f"this cluster asks for Authorization: Bearer TOKEN, and the request has {what}; {HOW_TO_GET_ONE}"
        )
    token: bytes = values[0][len(_SCHEME) :].strip()
    return token
