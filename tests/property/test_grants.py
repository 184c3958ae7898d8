"""What grants allow, held against a model that enumerates: for each scope the very names that it is about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import Forbidden, InvalidName, InvalidRequest
from storenode.grants import EVERY, VERBS, Grant, Scope, Verb

BUCKETS = ("aaa", "aaab", "bbb")
KEYS = ("a", "a/b", "a/b/c", "ab", "b", "é/x")
PREFIXES = ("", "a", "a/", "a/b", "é", "b/", "z")

plain_scopes = st.builds(
    Scope.of,
    bucket=st.sampled_from((*BUCKETS, EVERY)),
    prefix=st.sampled_from(PREFIXES),
    verbs=st.sets(st.sampled_from([verb for verb in VERBS if verb != "admin"]), min_size=1),
)
whole_scopes = st.builds(Scope.of, bucket=st.sampled_from((*BUCKETS, EVERY)), verbs=st.sets(st.sampled_from(VERBS), min_size=1))
grants = st.builds(
    Grant,
    subject=st.text(max_size=5),
    scopes=st.lists(plain_scopes | whole_scopes, max_size=4).map(tuple),
    expires_s=st.integers(0, 2**40),
)


def named(grant: Grant, verb: Verb) -> set[tuple[str, str]]:
    """All (bucket, key) for which some scope has `verb`."""
    return {
        (bucket, key)
        for scope in grant.scopes
        for bucket in (BUCKETS if scope.bucket == EVERY else (scope.bucket,))
        for key in KEYS
        if verb in scope.verbs and key[: len(scope.prefix)] == scope.prefix
    }


@given(grant=grants, verb=st.sampled_from(VERBS))
def test_a_verb_is_allowed_on_the_keys_that_some_scope_is_about_and_on_no_others(grant: Grant, verb: Verb) -> None:
    allowed = {(bucket, key) for bucket in BUCKETS for key in KEYS if grant.allows(verb, bucket, key)}
    assert allowed == named(grant, verb)
    assert not allowed or grant.allows_somewhere(verb)


@given(grant=grants, bucket=st.sampled_from(BUCKETS), prefix=st.sampled_from(PREFIXES))
def test_a_listing_that_is_allowed_shows_only_keys_that_may_be_read(grant: Grant, bucket: str, prefix: str) -> None:
    if grant.allows("read", bucket, prefix):
        assert all(grant.allows("read", bucket, key) for key in KEYS if key.startswith(prefix))


@given(grant=grants, bucket=st.sampled_from(BUCKETS), verb=st.sampled_from(VERBS))
def test_a_whole_bucket_and_all_of_them_need_a_scope_without_a_prefix(grant: Grant, bucket: str, verb: Verb) -> None:
    whole = [scope for scope in grant.scopes if not scope.prefix and verb in scope.verbs]
    assert grant.allows(verb, bucket) == any(scope.bucket in (bucket, EVERY) for scope in whole)
    assert grant.allows(verb, EVERY) == any(scope.bucket == EVERY for scope in whole)
    assert grant.sees(bucket) == any(scope.bucket in (bucket, EVERY) for scope in grant.scopes)


@given(grant=grants)
def test_claims_say_all_of_a_grant(grant: Grant) -> None:
    assert Grant.from_claims(grant.claims()) == grant


@given(grant=grants, verb=st.sampled_from(VERBS), bucket=st.sampled_from(BUCKETS), key=st.sampled_from(KEYS))
def test_a_refusal_says_what_was_needed(grant: Grant, verb: Verb, bucket: str, key: str) -> None:
    if grant.allows(verb, bucket, key):
        grant.require(verb, bucket, key)
        return
    with pytest.raises(Forbidden) as refused:
        grant.require(verb, bucket, key)
    assert f"needs {verb} on {bucket}/{key}," in refused.value.message
    assert all(str(scope) in refused.value.message for scope in grant.scopes)


@pytest.mark.parametrize(
    "scope",
    [
        None,
        [],
        {"bucket": "data"},
        {"verbs": ["read"]},
        {"bucket": "data", "verbs": []},
        {"bucket": "data", "verbs": "read"},
        {"bucket": "data", "verbs": ["read", "fly"]},
        {"bucket": "data", "verbs": [["read"]]},
        {"bucket": "Data", "verbs": ["read"]},
        {"bucket": "", "verbs": ["read"]},
        {"bucket": "data", "verbs": ["read"], "prefix": 7},
        {"bucket": "data", "verbs": ["read"], "prefix": "\x00"},
        {"bucket": "data", "verbs": ["admin"], "prefix": "a/"},
        {"bucket": "data", "verbs": ["read"], "address": "10.0.0.0/8"},
    ],
)
def test_a_scope_that_could_mean_something_else_is_refused(scope: Any) -> None:
    with pytest.raises((InvalidRequest, InvalidName)):
        Grant.from_claims({"sub": "x", "exp": 1, "scopes": [scope]})


@pytest.mark.parametrize("claims", [{}, {"sub": "x", "exp": True, "scopes": []}, {"sub": 1, "exp": 1, "scopes": []}])
def test_claims_that_are_no_grant_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Grant.from_claims(claims)


def test_a_refusal_stays_short() -> None:
    scope = Scope.of(bucket="data", verbs=["read"], prefix="x" * 1000)
    error = Grant(subject="me", scopes=(scope,) * 500, expires_s=1).refusal("more")
    assert "and 492 more" in error.message and len(error.message) < 4000
