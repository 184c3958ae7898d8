"""What a bucket and a key may be called, and the ``forebay://bucket/key`` URL.

Names end up in metadata keys, URLs and messages, so control characters, ``.`` and ``..`` segments and empty segments are
refused here, once, for the client and the node alike. A URL names data, never hosts.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from client.errors import InvalidName

__all__ = ["MAX_KEY_BYTES", "SCHEME", "check_bucket", "check_key", "check_prefix", "format_url", "parse_path", "parse_url"]

SCHEME = "forebay://"
MAX_KEY_BYTES = 1024
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# The categories Cc and Cs of Unicode: control characters, and halves of characters, which have no UTF-8.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_bucket(bucket: str) -> str:
    """Return `bucket` if it is a valid bucket name, else raise `InvalidName`."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidName(
            f"bucket name {bucket!r}: use 3 to 63 of a-z, 0-9, '.', '-', beginning and ending with a letter or digit",
            key=bucket,
        )
    return bucket


def check_prefix(prefix: str) -> str:
    """Return `prefix` if some valid key may begin with it, else raise `InvalidName`."""
    if len(prefix.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise InvalidName(f"key {prefix[:40]!r}... is longer than {MAX_KEY_BYTES} bytes of UTF-8")
    found = _FORBIDDEN.search(prefix)
    if found:
        raise InvalidName(f"key {prefix!r} holds the control character {found.group()!r}; remove it", key=prefix)
    return prefix


def check_key(key: str) -> str:
    """Return `key` if it is a valid object key, else raise `InvalidName`.

    A key is 1 to 1,024 bytes of UTF-8, segments divided by ``/``, none of them empty, ``.`` or ``..``.
    """
    check_prefix(key)
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise InvalidName(f"key {key!r}: segments between '/' must not be empty, '.' or '..'", key=key)
    return key


def parse_path(path: str) -> tuple[str, str]:
    """Split ``bucket/key`` or ``forebay://bucket/key``; the key may be empty and is neither decoded nor checked further."""
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    return check_bucket(bucket), key


def parse_url(url: str) -> tuple[str, str]:
    """Split ``forebay://bucket/key`` into a valid bucket and a valid key."""
    if not url.startswith(SCHEME):
        raise InvalidName(f"{url!r} is no Forebay URL; it would look like {SCHEME}bucket/key", key=url)
    bucket, key = parse_path(url)
    try:
        return bucket, check_key(unquote(key, errors="strict"))
    except UnicodeDecodeError as exc:
        raise InvalidName(f"the key in {url!r} is not percent-encoded UTF-8", key=url) from exc


def format_url(bucket: str, key: str) -> str:
    """The URL of an object."""
    return f"{SCHEME}{bucket}/{quote(key, safe='/')}"
