"""What may be a bucket, a key and a URL, and what is refused."""

from __future__ import annotations

import pytest

from client.errors import InvalidName
from client.names import MAX_KEY_BYTES, check_bucket, check_key, check_prefix, format_url, parse_path, parse_url

AWKWARD_KEYS = [
    "a",
    "a/b.c",
    "100%",
    "%2F",
    "a b",
    "ключ/数据",
    "a?b#c&d=e",
    "a+b",
    "~tilde",
    "'quote\"",
    "\U0001f600",
    "a\\b",
    "a:b@c",
]


@pytest.mark.parametrize("bucket", ["abc", "a-b.c", "0ab", "a" * 63])
def test_good_buckets_pass(bucket: str) -> None:
    assert check_bucket(bucket) == bucket


@pytest.mark.parametrize("bucket", ["", "ab", "a" * 64, "Abc", "a_b", "-ab", "ab-", "a..b", "a/b", "abc\n", "äbc", ".abc"])
def test_bad_buckets_are_refused_with_the_rule(bucket: str) -> None:
    with pytest.raises(InvalidName, match="3 to 63"):
        check_bucket(bucket)


@pytest.mark.parametrize("key", [*AWKWARD_KEYS, "k" * MAX_KEY_BYTES, "...", ".hidden", "a/..b"])
def test_good_keys_pass(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "../a"])
def test_keys_with_empty_or_dotted_segments_are_refused(key: str) -> None:
    with pytest.raises(InvalidName, match="segments"):
        check_key(key)


@pytest.mark.parametrize("char", ["\0", "\n", "\r", "\t", "\x1f", "\x7f", "\x80", "\x9f", "\ud800", "\udfff"])
def test_control_characters_and_half_characters_are_refused(char: str) -> None:
    with pytest.raises(InvalidName, match="control character"):
        check_key(f"a{char}b")


def test_the_limit_counts_bytes_of_utf8() -> None:
    assert check_key("é" * (MAX_KEY_BYTES // 2))
    with pytest.raises(InvalidName, match="1024 bytes"):
        check_key("é" * (MAX_KEY_BYTES // 2) + "a")


def test_a_prefix_may_end_anywhere() -> None:
    for prefix in ("", "a/", "a//", ".", "a/."):
        assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("key", AWKWARD_KEYS)
def test_urls_come_back_as_they_went(key: str) -> None:
    url = format_url("abc", key)
    assert parse_url(url) == ("abc", key)
    assert url.isascii()
    assert not set(url) & set(" ?#")


@pytest.mark.parametrize(
    "url", ["s3://abc/k", "abc/k", "forebay://abc", "forebay://abc/", "forebay://AB/k", "forebay://abc/a/%2e%2e/b"]
)
def test_what_is_no_url_of_an_object_is_refused(url: str) -> None:
    with pytest.raises(InvalidName):
        parse_url(url)


def test_a_url_that_is_no_utf8_is_refused_and_not_changed() -> None:
    with pytest.raises(InvalidName, match="UTF-8"):
        parse_url("forebay://abc/%ff")


def test_paths_split_at_the_first_slash_and_are_not_decoded() -> None:
    assert parse_path("abc/d/e") == ("abc", "d/e")
    assert parse_path("forebay://abc/d%20e") == ("abc", "d%20e")
    assert parse_path("abc") == ("abc", "")
