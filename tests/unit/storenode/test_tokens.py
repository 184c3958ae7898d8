"""Tokens: which are taken, what is said of the others, and that a signature is looked at once."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from client.errors import Unauthenticated
from storenode.grants import Grant, Scope
from storenode.secret import Secret
from storenode.tokens import MAX_TOKEN_BYTES, NodeTokens, claims_of, mint, signed_by
from tests.support.tokens import NOW_S, OTHER, SECRET, make_token, make_tokens


def test_a_token_says_what_it_was_made_for() -> None:
    grant = make_tokens().grant(make_token("read", "write", prefix="a/").encode())
    assert grant == Grant(
        subject="tester", scopes=(Scope.of(bucket="data", verbs=("read", "write"), prefix="a/"),), expires_s=NOW_S + 60
    )


def forged(claims: dict[str, Any], *, key: bytes = SECRET.keys[0], algorithm: str = "HS256") -> str:
    whole = {"iss": "forebay", "sub": "x", "exp": int(NOW_S) + 60, "scopes": [], **claims}
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, key, algorithm=algorithm)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "not signed with this cluster's secret"),
        ("nonsense", "not signed"),
        ("é.\xff.x", "not signed"),
        (make_token("read", secret=OTHER), "not signed"),
        (make_token("read")[:-2] + "AA", "not signed"),
        (forged({}, algorithm="HS512"), "not signed"),
        (forged({"iss": "somebody"}), "not signed"),
        (forged({"exp": None}), "not signed"),
        (forged({"sub": None}), "not signed"),
        (forged({"exp": 2**70, "x": "y" * MAX_TOKEN_BYTES}), "not signed"),
        (forged({"scopes": None}), "can't be understood: expected sub, exp and scopes"),
        (forged({"scopes": [{"bucket": "*", "verbs": ["fly"]}]}), "can't be understood: verbs 'fly': use read, write"),
        (forged({"aud": "c2"}), "for cluster 'c2', and this is c1"),
        (forged({"aud": ["c1"]}), "for cluster"),
        (
            forged({"exp": int(NOW_S) - 11}),
            "of x expired at 2027-01-15 07:59:49 UTC, and this node's clock says 2027-01-15 08:00:00",
        ),
        (forged({"exp": -(2**70)}), "expired at -1.18059e\\+21 s since 1970"),
    ],
)
def test_what_is_wrong_with_a_token_is_said_and_the_token_is_not(token: str, said: str) -> None:
    with pytest.raises(Unauthenticated, match=said) as refused:
        make_tokens().grant(token.encode("latin-1"))
    assert "forebay token create" in refused.value.message or "understood" in refused.value.message
    assert not token or token not in refused.value.message
    assert not refused.value.retryable


def test_a_token_without_a_signature_is_nothing() -> None:
    head, body = ({"alg": "none", "typ": "JWT"}, {"iss": "forebay", "sub": "x", "exp": int(NOW_S) + 60, "scopes": []})
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, body)]
    with pytest.raises(Unauthenticated, match="not signed"):
        make_tokens().grant(b".".join([*parts, b""]))


def test_a_token_for_this_cluster_is_taken() -> None:
    make_tokens().grant(make_token("read", cluster_id="c1").encode())


def test_a_token_from_a_clock_that_runs_ahead_is_taken() -> None:
    make_tokens().grant(forged({"iat": int(NOW_S) + 7200, "nbf": int(NOW_S) + 7200}).encode())


def test_every_key_verifies_and_the_first_one_signs() -> None:
    both = Secret(*OTHER.keys, *SECRET.keys)
    make_tokens(both).grant(make_token("read", secret=SECRET).encode())
    token = make_token("read", secret=both).encode()
    make_tokens(OTHER).grant(token)
    with pytest.raises(Unauthenticated):
        make_tokens(SECRET).grant(token)


def test_a_signature_is_looked_at_once_and_the_clock_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, clock = make_tokens(), [NOW_S]
    monkeypatch.setattr(tokens, "_clock", lambda: clock[0])
    token = make_token("read").encode()
    assert tokens.known(token) is None
    grant = tokens.grant(token)
    with monkeypatch.context() as patch:
        patch.setattr("storenode.tokens.signed_by", None)
        assert tokens.known(token) is tokens.grant(token) is grant
    clock[0] = NOW_S + 70
    assert tokens.known(token) is grant
    clock[0] = NOW_S + 71
    assert tokens.known(token) is None
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.grant(token)


def test_few_tokens_are_remembered_and_only_genuine_ones() -> None:
    tokens = make_tokens(max_known=2)
    first, *others = (make_token("read", prefix=str(number)).encode() for number in range(3))
    for token in (first, *others):
        tokens.grant(token)
    for number in range(5):
        with pytest.raises(Unauthenticated):
            tokens.grant(b"%d" % number)
    assert tokens.known(first) is None
    assert all(tokens.known(token) is not None for token in others)


def test_a_node_renews_its_token_before_it_ends_and_when_its_clock_is_set_back() -> None:
    clock = [NOW_S]
    source = NodeTokens(SECRET, subject="node:n1", cluster_id="c1", lifetime_s=100, clock=lambda: clock[0])
    first = source()
    clock[0] += 49
    assert source() == first
    clock[0] += 1
    second = source()
    assert second != first and source() == second
    clock[0] -= 1
    assert claims_of(source()) == {
        "iss": "forebay",
        "sub": "node:n1",
        "aud": "c1",
        "iat": int(NOW_S) + 49,
        "exp": int(NOW_S) + 149,
        "scopes": [{"bucket": "*", "verbs": ["read", "write"]}],
    }


def test_claims_are_readable_without_the_secret() -> None:
    token = make_token("read", secret=OTHER)
    assert claims_of(token)["scopes"] == [{"bucket": "data", "verbs": ["read"]}]
    assert signed_by(SECRET, token) is None
    assert signed_by(OTHER, token) == claims_of(token)
    with pytest.raises(Unauthenticated, match="no token"):
        claims_of("nonsense")


def test_a_token_is_no_longer_than_a_header_may_be() -> None:
    scopes = tuple(Scope.of(bucket=f"bucket-{number}", verbs=("read",), prefix="x" * 40) for number in range(100))
    token = mint(SECRET, Grant(subject="x", scopes=scopes, expires_s=NOW_S), now_s=NOW_S)
    assert len(token) > MAX_TOKEN_BYTES
    with pytest.raises(Unauthenticated, match="not signed"):
        make_tokens().grant(token.encode())
