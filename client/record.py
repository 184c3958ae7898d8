"""What the metadata says of a bucket and of an object: small JSON values, committed by compare-and-swap.

A record never holds content, only references to it: inline up to `INLINE_REFS`, else one reference to the root of a tree
of manifests. Its version is the metadata revision that committed it, so it is not part of the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from client.errors import InvalidRequest, MetadataCorrupt
from client.manifest import Ref

__all__ = [
    "ACK_LEVELS",
    "INLINE_REFS",
    "Ack",
    "BucketPolicy",
    "Condition",
    "Content",
    "ObjectInfo",
    "ObjectRecord",
    "acks_needed",
]

Ack = Literal["one", "quorum", "all"]
ACK_LEVELS: tuple[Ack, ...] = ("one", "quorum", "all")
INLINE_REFS = 8
MAX_METADATA_BYTES = 8 * 1024
_ETAG = re.compile(r"\*|[A-Za-z0-9_-]{1,64}")


def acks_needed(replicas: int, *, ack: str) -> int:
    """How many durable copies `ack` asks for. A quorum is a majority, so of 2 replicas it is both."""
    needed = {"one": 1, "quorum": replicas // 2 + 1, "all": replicas}
    if ack not in needed:
        raise InvalidRequest(f"ack level {ack!r}: use one of {', '.join(ACK_LEVELS)}")
    return needed[ack]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPolicy:
    """What holds for new objects of a bucket.

    Attributes
    ----------
    replicas : int
        Copies of each chunk.
    ack : str
        Copies that must be durable before a write is acknowledged: one, quorum or all.
    versions : int
        Older versions kept of each object; 0 keeps none.
    """

    replicas: int = 3
    ack: Ack = "quorum"
    versions: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 16:
            raise InvalidRequest(f"replicas must be 1 to 16, found {self.replicas}")
        if not 0 <= self.versions <= 10_000:
            raise InvalidRequest(f"versions must be 0 to 10,000, found {self.versions}")
        acks_needed(self.replicas, ack=self.ack)

    def to_json(self) -> dict[str, Any]:
        """The policy as a JSON object."""
        return {"replicas": self.replicas, "ack": self.ack, "versions": self.versions}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BucketPolicy:
        """The policy in `value`; what it leaves out has its default. Raises `InvalidRequest`."""
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"bucket settings are a JSON object, found {str(value)[:100]}")
        unknown = set(value) - {"replicas", "ack", "versions"}
        if unknown:
            raise InvalidRequest(f"unknown bucket settings {sorted(unknown)}; known are replicas, ack, versions")
        try:
            return cls(**{**value, **{k: int(value[k]) for k in ("replicas", "versions") if k in value}})
        except (TypeError, ValueError, OverflowError) as exc:
            raise InvalidRequest(f"bucket settings must be whole numbers, found {dict(value)}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The bytes of an object, by reference.

    Attributes
    ----------
    size : int
        Bytes.
    digest : str
        `client.checksum.content_digest` over the ids of all data chunks.
    refs : tuple of Ref
        The data chunks in order, if `manifest` is None.
    manifest : Ref or None
        Root of the manifest tree of a larger object.
    """

    size: int
    digest: str
    refs: tuple[Ref, ...] = ()
    manifest: Ref | None = None

    def chunk_at(self, position: int) -> tuple[Ref, int] | None:
        """The chunk that holds byte `position`, and the position of its first byte; None if only manifests can tell."""
        offset = 0
        for ref in self.refs:
            if position < offset + ref.size:
                return ref, offset
            offset += ref.size
        return None

    def to_json(self) -> dict[str, Any]:
        """The content as a JSON object; references as the hex of their packed bytes."""
        value: dict[str, Any] = {"size": self.size, "digest": self.digest}
        if self.manifest is not None:
            return {**value, "manifest": self.manifest.pack().hex()}
        return {**value, "refs": [ref.pack().hex() for ref in self.refs]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Content:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            size, digest, packed = int(value["size"]), str(value["digest"]), value.get("manifest")
            # Lists, because most contents have one reference, for which a generator costs more than what it yields.
            refs = tuple([Ref.unpack(bytes.fromhex(ref)) for ref in value.get("refs", ())])
            manifest = Ref.unpack(bytes.fromhex(packed)) if packed is not None else None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as exc:
            raise MetadataCorrupt(f"the content of a record can't be read: {exc!r}") from exc
        if manifest is None and (found := sum([ref.size for ref in refs])) != size:
            raise MetadataCorrupt(f"a record of {size} bytes refers to {found}")
        return cls(size=size, digest=digest, refs=refs, manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """One committed version of an object, or the tombstone that a delete left in a bucket with versions."""

    write_id: str
    content: Content
    content_type: str = "application/octet-stream"
    metadata: Mapping[str, str] = field(default_factory=dict)
    ack: Ack = "quorum"
    replicas: int = 3
    created_s: float = 0.0
    tombstone: bool = False

    def __post_init__(self) -> None:
        if self.metadata == {}:
            return
        try:
            size = sum(len(k.encode()) + len(v.encode()) for k, v in self.metadata.items())
        except (AttributeError, UnicodeEncodeError) as exc:
            raise InvalidRequest(f"metadata of an object maps text to text: {exc}") from exc
        if size > MAX_METADATA_BYTES:
            raise InvalidRequest(f"metadata of an object holds at most {MAX_METADATA_BYTES} bytes, found {size}")

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {
            "write_id": self.write_id,
            "content": self.content.to_json(),
            "content_type": self.content_type,
            "metadata": dict(self.metadata),
            "ack": self.ack,
            "replicas": self.replicas,
            "created_s": self.created_s,
            "tombstone": self.tombstone,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ObjectRecord:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            return cls(
                write_id=str(value["write_id"]),
                content=Content.from_json(value["content"]),
                content_type=str(value["content_type"]),
                metadata={str(k): str(v) for k, v in value["metadata"].items()},
                ack=value["ack"],
                replicas=int(value["replicas"]),
                created_s=float(value["created_s"]),
                tombstone=bool(value["tombstone"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as exc:
            raise MetadataCorrupt(f"an object's record can't be read: {exc!r}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """A named version of an object: what stat, put and list return.

    Attributes
    ----------
    version : int
        The metadata revision of its commit; grows with every write in the cluster.
    """

    bucket: str
    key: str
    version: int
    record: ObjectRecord

    @property
    def etag(self) -> str:
        """The write id: changes with every write, also with one of equal bytes."""
        return self.record.write_id

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.record.content.size

    @property
    def digest(self) -> str:
        """Digest of the content; equal for equal bytes in equal chunks."""
        return self.record.content.digest

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the writer attached."""
        return self.record.metadata

    def to_json(self) -> dict[str, Any]:
        """The info as a JSON object, record included."""
        return {"bucket": self.bucket, "key": self.key, "version": self.version, "record": self.record.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ObjectInfo:
        """The inverse of `to_json`; raises `MetadataCorrupt`."""
        try:
            bucket, key, version = str(value["bucket"]), str(value["key"]), int(value["version"])
            record = ObjectRecord.from_json(value["record"])
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise MetadataCorrupt(f"an object's info can't be read: {exc!r}") from exc
        return cls(bucket=bucket, key=key, version=version, record=record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold for a write to happen, as HTTP's If-Match and If-None-Match.

    Attributes
    ----------
    if_match : str or None
        The ETag that the object must have; ``"*"`` for any object.
    if_none_match : str or None
        ``"*"``: there must be no object. An ETag: the object must not have it.
    """

    if_match: str | None = None
    if_none_match: str | None = None

    def __post_init__(self) -> None:
        for tag in (self.if_match, self.if_none_match):
            if tag is not None and not _ETAG.fullmatch(tag):
                raise InvalidRequest(
                    f"condition {tag[:100]!r}: expected an ETag as `ObjectInfo.etag` has it, without quotes, or *"
                )

    def holds(self, etag: str | None) -> bool:
        """Whether an object with `etag` (None: no object) satisfies the condition."""
        if self.if_match is not None and (etag is None or self.if_match not in ("*", etag)):
            return False
        return self.if_none_match is None or etag is None or self.if_none_match not in ("*", etag)
