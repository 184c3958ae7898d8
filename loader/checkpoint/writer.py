"""`CheckpointWriter`: what all ranks save becomes one object, by one commit.

Theory of operation
-------------------
`torch.distributed.checkpoint` plans which rank writes which shard. Each rank stores its own as chunks, to which no name leads
yet, and reports them to the coordinator. That composes the file (`loader.checkpoint.index`), stores its header and commits one
record that lists all chunks. So a checkpoint is visible as a whole or not at all, whoever dies at whatever moment; chunks of a
save that came to nothing are garbage, and are collected as any. Chunks that an earlier checkpoint has are neither sent nor
written again.

Two saves of one writer may not overlap: the second would be given the first one's name. It is refused. And staged buffers are
used again only once their chunks are stored.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future
from typing_extensions import Buffer

from client.catalog import Commit
from client.cluster import Anchor
from client.names import parse_url
from client.objects import ObjectStore
from client.record import Ack, Condition, ObjectInfo
from client.upload import ChunkUploader, make_content
from loader.checkpoint.index import Pack, RankReport, StoredShard, compose, pack_bytes
from loader.checkpoint.planner import SavePlanner as JsonSavePlanner
from loader.checkpoint.staging import staged
from loader.errors import InvalidOption
from loader.store_user import StoreUser
from loader.tensors.dtypes import stored_type
from loader.tensors.header import DTYPE_BITS
from loader.tensors.layout import OWN_CHUNK_BYTES
from loader.tensors.memory import bytes_of
from loader.tensors.save import CONTENT_TYPE

__all__ = ["CheckpointWriter"]


class CheckpointWriter(StoreUser, StorageWriter, BlockingAsyncStager):
    """Storage for `torch.distributed.checkpoint.save` and `async_save`, of one checkpoint after another.

    Parameters
    ----------
    url : str, optional
        ``forebay://bucket/key`` of the checkpoint, the same on all ranks. ``checkpoint_id`` of a save replaces it.
    if_match, if_none_match, ack
        As for `client.Client.put`.
    metadata : mapping of str to str, optional
        Kept in the file.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile.
    client : ObjectStore, optional
        Used instead of one made from `endpoints`.

    Attributes
    ----------
    info : ObjectInfo or None
        On the coordinator: of the last checkpoint.

    Raises
    ------
    InvalidOption
        From a save: for values that JSON can't hold, without a `loader.checkpoint.SavePlanner`, without a URL, or while
        another save of this writer is under way.
    PreconditionFailed, BucketNotFound, NotEnoughReplicas, DiskFull
        From a save, wrapped by torch in a ``CheckpointException``. Nothing is visible then.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        ack: Ack | None = None,
        metadata: Mapping[str, str] | None = None,
        endpoints: str | list[str] | None = None,
        client: ObjectStore | None = None,
    ) -> None:
        StoreUser.__init__(self, client, endpoints)
        BlockingAsyncStager.__init__(self, cache_staged_state_dict=True)
        self.url = url
        self.info: ObjectInfo | None = None
        self._condition = Condition(if_match=if_match, if_none_match=if_none_match)
        self._ack = ack
        self._metadata = dict(metadata or {})
        self._uploader: ChunkUploader | None = None
        self._saving: threading.Thread | None = None
        self._is_coordinator = False
        self._buffers_in_use = False

    def close(self) -> None:
        """Close the connections, if they are this writer's own, and free the staging buffers."""
        self.state_dict_cache = None
        super().close()

    # What torch.distributed.checkpoint calls, in this order.

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of the state on the CPU, in buffers that the next save uses again."""
        self.state_dict_cache = staged(state_dict, None if self._buffers_in_use else self.state_dict_cache)
        self._buffers_in_use = True
        return self.state_dict_cache

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a save."""
        # One that broke off while torch planned it has left its thread here; another thread's goes on as long as that lives.
        if self._saving not in (None, threading.current_thread()) and self._saving.is_alive():
            raise InvalidOption(f"the save of {self.url} is under way: wait for its future, or use another CheckpointWriter")
        self._saving = threading.current_thread()
        if checkpoint_id is not None:
            self.url = os.fspath(checkpoint_id)
        self.info = self._uploader = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a URL of a Forebay object."""
        return str(checkpoint_id).startswith("forebay://")

    def storage_meta(self) -> StorageMeta | None:
        """Which checkpoint this is."""
        return StorageMeta(checkpoint_id=self.url)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Find out what the bucket asks for."""
        if self.url is None:
            raise InvalidOption("no URL: give one to CheckpointWriter, or as checkpoint_id to save")
        if not kwargs.get("use_collectives", True):
            raise InvalidOption("use_collectives=False: a checkpoint of several ranks is one object, which one of them commits")
        self._is_coordinator = is_coordinator
        policy = self._store.catalog.bucket(parse_url(self.url)[0])
        self._uploader = self._store.uploader(policy.replicas, ack=self._ack or policy.ack)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store this rank's shards; the one result carries its `RankReport`."""
        try:
            report = self._store_shards(plan, planner)
        except BaseException:
            self._saving = None
            raise
        finally:
            self._buffers_in_use = False
        if not self._is_coordinator:
            self._saving = None
        num_bytes = sum(_num_bytes(pack.shards) for pack in (*report.small, *report.large))
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(index=MetadataIndex(""), size_in_bytes=num_bytes, storage_data=report)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: commit what all ranks have stored."""
        try:
            self._commit(metadata, results)
        finally:
            self._saving = None

    def _commit(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self.url is not None and self._uploader is not None
        bucket, key = parse_url(self.url)
        reports = [result.storage_data for of_rank in results for result in of_rank]
        paths = {name: path for name, path in (metadata.planner_data or {}).items() if name in metadata.state_dict_metadata}
        composed = compose(reports, paths=paths, metadata=self._metadata)
        header = list(self._store.store_chunks(_cut(composed.header, self._chunk_size_bytes), uploader=self._uploader))
        # Of all ranks' the oldest holds for all chunks, or else for none of them, and then they are touched again.
        anchors = [self._uploader.anchor, *(report.anchor for report in reports)]
        self._uploader.anchor = Anchor(
            layout=min(anchor.layout for anchor in anchors), epoch=min(anchor.epoch for anchor in anchors)
        )
        content = make_content([*header, *composed.refs], self._uploader)
        record = self._store.new_record(bucket, content=content, content_type=CONTENT_TYPE, ack=self._ack)
        write = Commit(bucket=bucket, key=key, record=record, condition=self._condition)
        self.info = self._store.commit(write, uploader=self._uploader)

    @property
    def _chunk_size_bytes(self) -> int:
        return self._store.config.chunk_size_bytes

    def _store_shards(self, plan: SavePlan, planner: SavePlanner) -> RankReport:
        assert self._uploader is not None
        values: dict[str, Any] = {}
        small: list[tuple[StoredShard, torch.Tensor]] = []
        large: list[tuple[StoredShard, torch.Tensor]] = []
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                if not isinstance(planner, JsonSavePlanner):
                    raise InvalidOption(
                        f"{item.index.fqn!r} is no tensor, and {type(planner).__name__} would pickle it: save with "
                        "planner=loader.checkpoint.SavePlanner()"
                    )
                data = planner.resolve_data(item)
                assert isinstance(data, io.BytesIO)
                values[item.index.fqn] = json.loads(data.getvalue())
                continue
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            shard = _shard_of(item, tensor)
            is_large = shard.num_bytes >= min(OWN_CHUNK_BYTES, self._chunk_size_bytes)
            (large if is_large else small).append((shard, tensor.detach()))
        packs = list(_packed(small, most_bytes=self._chunk_size_bytes))
        # One after another, so that no more copies exist than are under way.
        payloads = _payloads(packs, large, chunk_size_bytes=self._chunk_size_bytes)
        refs = self._store.store_chunks(payloads, uploader=self._uploader)
        stored_small = tuple(
            Pack(shards=(shards := tuple(shard for shard, _ in pack)), refs=(next(refs),) if _num_bytes(shards) else ())
            for pack in packs
        )
        stored_large = tuple(
            Pack(shards=(shard,), refs=tuple(next(refs) for _ in range(0, shard.num_bytes, self._chunk_size_bytes)))
            for shard, _ in large
        )
        assert next(refs, None) is None
        return RankReport(small=stored_small, large=stored_large, values=values, anchor=self._uploader.anchor)


def _shard_of(item: WriteItem, tensor: torch.Tensor) -> StoredShard:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    stored_dtype, stored_sizes = stored_type(tensor)
    return StoredShard(
        name=item.index.fqn,
        dtype=str(tensor.dtype),
        shape=tuple(item.tensor_data.size),
        offsets=tuple(chunk.offsets),
        sizes=tuple(chunk.sizes),
        stored_dtype=stored_dtype,
        stored_sizes=stored_sizes,
        num_bytes=tensor.numel() * tensor.dtype.itemsize,
    )


def _packed(
    small: list[tuple[StoredShard, torch.Tensor]], *, most_bytes: int
) -> Iterator[list[tuple[StoredShard, torch.Tensor]]]:
    """Groups of small shards that share a chunk, each in an order that keeps them aligned."""
    pack: list[tuple[StoredShard, torch.Tensor]] = []
    size = 0
    for shard, tensor in sorted(small, key=lambda entry: (-DTYPE_BITS[entry[0].stored_dtype], entry[0].name, entry[0].offsets)):
        if pack and pack_bytes(size + shard.num_bytes) > most_bytes:
            yield pack
            pack, size = [], 0
        pack.append((shard, tensor))
        size += shard.num_bytes
    if pack:
        yield pack


def _payloads(
    packs: list[list[tuple[StoredShard, torch.Tensor]]],
    large: list[tuple[StoredShard, torch.Tensor]],
    *,
    chunk_size_bytes: int,
) -> Iterator[Buffer]:
    for pack in packs:
        joined = b"".join(bytes_of(tensor) for _, tensor in pack)
        if joined:  # All of its tensors may be empty.
            yield joined + bytes(pack_bytes(len(joined)) - len(joined))
    for _, tensor in large:
        yield from _cut(bytes_of(tensor), chunk_size_bytes)


def _cut(data: Buffer, chunk_size_bytes: int) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), chunk_size_bytes):
        yield view[start : start + chunk_size_bytes]


def _num_bytes(shards: Iterable[StoredShard]) -> int:
    return sum(shard.num_bytes for shard in shards)
