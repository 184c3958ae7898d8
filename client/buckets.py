"""Buckets: created explicitly, each with the policy that new objects in it follow."""

from __future__ import annotations

from client.catalog import Catalog
from client.names import check_bucket
from client.record import Ack, BucketPolicy

__all__ = ["Buckets"]


class Buckets:
    """The buckets of a store."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def create(self, bucket: str, *, replicas: int = 3, ack: Ack = "quorum", versions: int = 0) -> BucketPolicy:
        """Create a bucket; see `BucketPolicy`. Raises `BucketExists` if it exists with another policy."""
        policy = BucketPolicy(replicas=replicas, ack=ack, versions=versions)
        self._catalog.create_bucket(check_bucket(bucket), policy)
        return policy

    def get(self, bucket: str) -> BucketPolicy:
        """The policy of a bucket. Raises `BucketNotFound`."""
        return self._catalog.bucket(bucket)

    def list(self) -> dict[str, BucketPolicy]:
        """All buckets, by name."""
        return self._catalog.buckets()

    def set(
        self, bucket: str, *, replicas: int | None = None, ack: Ack | None = None, versions: int | None = None
    ) -> BucketPolicy:
        """Change what is given; it holds for objects written from now on."""
        old = self._catalog.bucket(bucket)
        policy = BucketPolicy(
            replicas=old.replicas if replicas is None else replicas,
            ack=old.ack if ack is None else ack,
            versions=old.versions if versions is None else versions,
        )
        self._catalog.set_bucket(bucket, policy)
        return policy

    def delete(self, bucket: str) -> None:
        """Delete an empty bucket. Raises `BucketNotEmpty`."""
        self._catalog.delete_bucket(bucket)
