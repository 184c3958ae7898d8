"""Objects by name: put, get and the rest, once for the client and for the node's own routes.

`ObjectStore` joins the catalog (names, `client.namespace`), the upload path and the verified read. The client builds one over
HTTP; a node builds one over its metadata to serve plain HTTP. It holds no state beyond two bounded thread pools.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

from typing_extensions import Buffer

from client import anchoring
from client.batch_writer import BatchWriter
from client.byte_range import num_bytes
from client.catalog import Catalog, Commit, Consistency, Source
from client.checksum import SEGMENT_BYTES
from client.chunks import ChunkClient
from client.cluster import Cluster
from client.config import ClientConfig
from client.errors import ChunkCorrupt, InvalidRequest
from client.in_flight import ThreadPool, in_order
from client.manifest import Ref
from client.manifest_cache import ManifestCache
from client.names import check_bucket, check_key
from client.namespace import Namespace
from client.object_upload import ObjectUpload
from client.payloads import Data, cut
from client.reader import ContentReader, ObjectFile
from client.record import Ack, Condition, Content, ObjectInfo, ObjectRecord
from client.replica import ReplicaReader
from client.retry import Backoff
from client.upload import ChunkUploader, Upload
from client.write_id import new_write_id

__all__ = ["ObjectStore"]


class ObjectStore(Namespace):
    """Put, get, list and the rest over a catalog and a cluster of nodes. Thread-safe.

    Parameters
    ----------
    catalog : Catalog
        Names to records.
    cluster : Cluster
        Who holds what, and who lives.
    chunks : ChunkClient
        Moves single chunks.
    config : ClientConfig
        Bounds and timeouts.
    """

    def __init__(self, catalog: Catalog, cluster: Cluster, chunks: ChunkClient, config: ClientConfig) -> None:
        super().__init__(catalog)
        self.cluster = cluster
        self.chunks = chunks
        self.config = config
        self.replica_reader = ReplicaReader(cluster, chunks, config)
        self._manifests = ManifestCache()
        # Calls of get_many and put_many wait for chunks, so the two kinds of work must not share threads.
        self._chunk_pool = ThreadPool(config.max_threads, name="forebay-chunk")
        self._call_pool = ThreadPool(config.max_threads, name="forebay-call")
        # A few more than there are threads, so that a slow call at the head does not leave them idle.
        self._max_calls = 2 * config.max_threads

    def close(self) -> None:
        """Stop the threads; calls in progress, and what waits for a thread, end first."""
        self._call_pool.shutdown()
        self._chunk_pool.shutdown()
        self.replica_reader.close()

    def host(self) -> str:
        """What the layout calls this host.

        ``FOREBAY_MACHINE`` if it is set, else the host of a node that proves to be here, else the machine's own name.
        """
        if self.config.machine:
            return self.config.machine
        present = self.chunks.present()
        return next((node.host for node in self.cluster.layout.nodes if node.id in present), socket.gethostname())

    # Writing

    def put(
        self,
        bucket: str,
        key: str,
        data: Data,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        ack: Ack | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "application/octet-stream",
    ) -> ObjectInfo:
        """Store an object and return once it is durable and named.

        Parameters
        ----------
        data : bytes-like, path or binary file
            A path is opened; a file is read to its end, a chunk at a time.
        if_match : str, optional
            Only if the object has this ETag (``"*"``: only if it exists).
        if_none_match : str, optional
            ``"*"``: only if there is no such object.
        ack : str, optional
            Durable copies to wait for, one, quorum or all; by default what the bucket says.
        metadata : mapping, optional
            Up to 8 KiB of text to keep with the object.

        Raises
        ------
        PreconditionFailed, BucketNotFound, NotEnoughReplicas, DiskFull
        """
        condition = Condition(if_match=if_match, if_none_match=if_none_match)
        with self.upload(bucket, key, ack=ack, metadata=metadata, content_type=content_type) as upload:
            with closing(cut(data, chunk_size_bytes=self.config.chunk_size_bytes)) as payloads:
                for payload in payloads:
                    upload.write_owned(payload)
            return upload.commit(condition=condition)

    def upload(
        self,
        bucket: str,
        key: str,
        *,
        ack: Ack | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "application/octet-stream",
        write_id: str | None = None,
    ) -> ObjectUpload:
        """Begin an object that is written piece by piece; see `put` for the parameters."""
        check_bucket(bucket)
        check_key(key)
        record = self.new_record(bucket, ack=ack, metadata=metadata, content_type=content_type, write_id=write_id)
        uploader = self.uploader(record.replicas, ack=record.ack)
        upload = Upload(
            uploader,
            self._chunk_pool,
            chunk_size_bytes=self.config.chunk_size_bytes,
            max_in_flight=self.config.max_in_flight_chunks,
        )
        return ObjectUpload(partial(self.commit, uploader=uploader), upload, bucket=bucket, key=key, record=record)

    def new_record(
        self,
        bucket: str,
        *,
        content: Content | None = None,
        ack: Ack | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "application/octet-stream",
        write_id: str | None = None,
    ) -> ObjectRecord:
        """The record of a new object as its bucket wants it; see `put` for the parameters."""
        policy = self.catalog.bucket(bucket)
        return ObjectRecord(
            write_id=write_id or new_write_id(),
            content=content or Content(size=0, digest=""),
            content_type=content_type,
            metadata=dict(metadata or {}),
            ack=ack or policy.ack,
            replicas=policy.replicas,
            created_s=time.time(),
        )

    def store_chunks(self, payloads: Iterable[Buffer], *, uploader: ChunkUploader) -> Generator[Ref, None, None]:
        """Store each payload as a chunk, several at a time; their references in order. Close it if it is not exhausted."""
        return in_order(self._chunk_pool, uploader.store, payloads, max_in_flight=self.config.max_in_flight_chunks)

    def commit(self, write: Commit, *, uploader: ChunkUploader) -> ObjectInfo:
        """Give what `uploader` has stored a name; see `client.anchoring.commit`."""
        return anchoring.commit(self.catalog, write, uploader, refs_of=self.refs_of)

    def refs_of(self, record: ObjectRecord) -> Iterator[Ref]:
        """All chunks of a record, manifests included."""
        return self._content_reader(record).refs()

    def uploader(self, replicas: int, *, ack: Ack) -> ChunkUploader:
        """What stores single chunks with this many replicas and acknowledgements."""
        return ChunkUploader(self.cluster, self.chunks, self.config, replicas=replicas, ack=ack)

    def put_many(self, items: Iterable[tuple[str, str, Data]]) -> list[ObjectInfo]:
        """Put several ``(bucket, key, data)`` at once; the infos are in their order.

        Objects of 1 byte to 64 KiB that are in memory go by the hundreds in one request. Of two items with one name the later
        wins. `items` may be a generator, from which no more are taken than fit into the bounds of what is under way.

        Raises
        ------
        BucketNotFound, NotEnoughReplicas, DiskFull
            The first error in the order of the items, once nothing is under way any more. Others may be committed then; items
            that were not taken are not.
        """
        writer = BatchWriter(
            self.catalog,
            put=self.put,
            uploader=self.uploader,
            refs_of=self.refs_of,
            calls=self._call_pool,
            requests=self._chunk_pool,
            max_puts=self._max_calls,
        )
        return writer.put_many(items)

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str, *, if_none_match: str | None = None) -> ObjectInfo:
        """Give an object's bytes a second name. No byte moves unless the target bucket wants more replicas."""
        info, policy = self.stat(bucket, key), self.catalog.bucket(to_bucket)
        condition = Condition(if_none_match=if_none_match)
        source = info.record
        if policy.replicas > source.replicas:
            with self.upload(to_bucket, to_key, metadata=source.metadata, content_type=source.content_type) as upload:
                for chunk in self.reader(info).stream():
                    upload.write_owned(chunk)
                return upload.commit(condition=condition)
        record = replace(source, write_id=new_write_id(), replicas=policy.replicas, created_s=time.time())
        write = Commit(bucket=to_bucket, key=to_key, record=record, condition=condition, proof=_source(info))
        return self.catalog.commit(write)

    def set_replicas(self, info: ObjectInfo, replicas: int) -> ObjectInfo:
        """Change how many replicas an object has; the nodes make the missing ones from then on.

        Raises
        ------
        InvalidRequest
            If the cluster has fewer nodes.
        PreconditionFailed
            If the object has changed since `info`.
        """
        num_nodes = len(self.cluster.refresh().layout.nodes)
        if not 1 <= replicas <= num_nodes:
            raise InvalidRequest(f"{replicas} replicas asked for; the cluster has {num_nodes} nodes, so 1 to {num_nodes}")
        record = replace(info.record, write_id=new_write_id(), replicas=replicas)
        condition = Condition(if_match=info.etag)
        write = Commit(bucket=info.bucket, key=info.key, record=record, condition=condition, proof=_source(info))
        return self.catalog.commit(write)

    # Reading

    def reader(self, info: ObjectInfo) -> ContentReader:
        """Verified reads of one version's bytes."""
        return self._content_reader(info.record)

    def _content_reader(self, record: ObjectRecord) -> ContentReader:
        return ContentReader(
            record.content,
            replicas=record.replicas,
            reader=self.replica_reader,
            manifests=self._manifests,
            executor=self._chunk_pool,
            max_in_flight=self.config.max_in_flight_chunks,
            backoff=Backoff(base_s=self.config.retry_base_s, max_s=self.config.retry_max_s),
            deadline_s=self.config.deadline_s,
        )

    def get(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        end: int | None = None,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> bytes:
        """Bytes ``[start, end)`` of an object, verified; an `end` past the last byte means the last byte.

        See `stat` for `version`, `snapshot` and `consistency`.

        Raises
        ------
        InvalidRange
            For a negative start, a start past the end of the object, or an end before the start.
        ObjectNotFound, AllReplicasFailed
        """
        return bytes(
            self._read(
                bucket,
                key,
                lambda info: memoryview(bytearray(num_bytes(info, start=start, end=end))),
                start=start,
                end=end,
                version=version,
                snapshot=snapshot,
                consistency=consistency,
            )
        )

    def read(self, info: ObjectInfo, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes ``[start, end)`` of one version of an object; see `get`."""
        data = bytearray(num_bytes(info, start=start, end=end))
        self.reader(info).read_into(data, start=start)
        return bytes(data)

    def get_into(
        self,
        bucket: str,
        key: str,
        buffer: Buffer,
        *,
        start: int = 0,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> int:
        """Fill `buffer` with an object's bytes from `start` on; returns how many, fewer only at its end."""
        size_bytes = memoryview(buffer).nbytes
        view = memoryview(buffer).cast("B") if size_bytes else memoryview(b"")  # Of no dimensions, it can't be cast.
        read = self._read(
            bucket,
            key,
            lambda info: view[: num_bytes(info, start=start, end=None)],
            start=start,
            end=start + size_bytes,
            version=version,
            snapshot=snapshot,
            consistency=consistency,
        )
        return len(read)

    def _read(
        self,
        bucket: str,
        key: str,
        place: Callable[[ObjectInfo], memoryview],
        *,
        start: int,
        end: int | None,
        version: int | None,
        snapshot: str | None,
        consistency: Consistency,
    ) -> memoryview:
        """Look an object up and fill the buffer that `place` makes for it with bytes from `start` on."""
        if snapshot is not None:
            version = self.stat(bucket, key, version=version, snapshot=snapshot).version
        if start < 0 or (end is not None and end <= start):
            return place(self.stat(bucket, key, version=version, consistency=consistency))  # Nothing, or an error.
        opened = self.catalog.begin_read(
            bucket,
            key,
            start=start,
            end=end,
            # A node on this host passes large chunks past the network.
            most=SEGMENT_BYTES if self.chunks.colocated() else None,
            version=version,
            consistency=consistency,
            place=place,
        )
        info, buffer = opened.info, opened.buffer
        if opened.filled:
            self.chunks.came_along(opened.filled)
        if opened.filled < len(buffer):
            self.reader(info).read_into(buffer[opened.filled :], start=start + opened.filled)
        if opened.corrupt is not None:
            self._report(opened.corrupt, info)
        return buffer

    def _report(self, ref: Ref, info: ObjectInfo) -> None:
        """Have the replicas of a chunk look at their copies: one sent bad bytes with a record, and which is not known."""
        holders = self.cluster.layouts.holders(ref.partition, count=info.record.replicas)
        error = ChunkCorrupt(f"chunk {ref}: the bytes that came with the record do not match the checksum", key=str(ref))
        self.replica_reader.report_corrupt(ref, dict.fromkeys(holders, error))

    def open(
        self,
        bucket: str,
        key: str,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        consistency: Consistency = "strong",
    ) -> io.BufferedReader:
        """A seekable, buffered file of one version of an object."""
        info = self.stat(bucket, key, version=version, snapshot=snapshot, consistency=consistency)
        return io.BufferedReader(ObjectFile(self.reader(info), name=f"{bucket}/{key}"), buffer_size=1 << 20)

    def get_many(self, items: Iterable[tuple[str, str, int, int | None]]) -> list[bytes]:
        """Get several ``(bucket, key, start, end)`` at once; the bytes are in their order."""

        def get(item: tuple[str, str, int, int | None]) -> bytes:
            return self.get(item[0], item[1], start=item[2], end=item[3])

        return list(in_order(self._call_pool, get, items, max_in_flight=self._max_calls))


def _source(info: ObjectInfo) -> Source:
    return Source(bucket=info.bucket, key=info.key, version=info.version)
