"""`CheckpointReader`: any part of a checkpoint into any sharding, by ranges of bytes.

`torch.distributed.checkpoint` plans what each rank needs of which tensor; a rank reads exactly that, verified, straight into
its shards where these are contiguous. What torch knows of a checkpoint is made from the file's own JSON. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from client.errors import StoreError
from client.objects import ObjectStore
from loader.checkpoint.index import CHECKPOINT_FORMAT
from loader.checkpoint.planner import LoadPlanner as JsonLoadPlanner
from loader.errors import FormatUnsupported, InvalidOption, LoaderError, TensorsCorrupt
from loader.store_user import StoreUser
from loader.tensors.contents import HIDDEN_PREFIX, Contents, Stored
from loader.tensors.reader import Part, TensorReader

__all__ = ["CheckpointReader"]


class CheckpointReader(StoreUser, StorageReader):
    """Storage for `torch.distributed.checkpoint.load`: of a checkpoint, or of any object of tensors.

    Parameters
    ----------
    url : str, optional
        ``forebay://bucket/key``. ``checkpoint_id`` of a load replaces it.
    version, snapshot
        As for `client.Client.stat`.
    endpoints : str or list of str, optional
        Nodes of the cluster; by default from the environment or profile.
    client : ObjectStore, optional
        Used instead of one made from `endpoints`.

    Raises
    ------
    TensorMismatch, TensorsCorrupt, FormatUnsupported, ObjectNotFound, AllReplicasFailed
        From a load, wrapped by torch in a ``CheckpointException``.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        version: int | None = None,
        snapshot: str | None = None,
        endpoints: str | list[str] | None = None,
        client: ObjectStore | None = None,
    ) -> None:
        self.url = url
        self._version, self._snapshot = version, snapshot
        super().__init__(client, endpoints)
        self._opened: TensorReader | None = None
        self._failure: StoreError | LoaderError | None = None

    # What torch.distributed.checkpoint calls, in this order.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a load."""
        if checkpoint_id is not None:
            self.url = os.fspath(checkpoint_id)
        self._opened = self._failure = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a URL of a Forebay object."""
        return str(checkpoint_id).startswith("forebay://")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds, in torch's terms."""
        try:
            return self._metadata()
        except (StoreError, LoaderError) as exc:
            # torch takes an error here for a sign that each rank has metadata of its own, and says that there are none.
            self._failure = exc
            return Metadata(state_dict_metadata={})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raise what `read_metadata` could not. Nothing else is left to do."""
        if self._failure is not None:
            raise self._failure

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def _metadata(self) -> Metadata:
        contents = self._reader().contents
        checkpoint = _checked(contents.checkpoint)
        described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
            name: _described(stored) for name, stored in _stored(contents)
        }
        described.update({name: BytesStorageMetadata() for name in checkpoint["values"]})
        paths = {name: tuple(path) for name, path in checkpoint["paths"].items()}
        return Metadata(
            state_dict_metadata=described,
            planner_data={name: paths.get(name, (name,)) for name in described},
            storage_meta=StorageMeta(checkpoint_id=self.url),
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what this rank needs."""
        reader = self._reader()
        values = _checked(reader.contents.checkpoint)["values"]
        tensors = [item for item in plan.items if item.type == LoadItemType.TENSOR]
        places = [planner.resolve_tensor(item).detach() for item in tensors]
        reader.load_parts(
            Part(name=item.storage_index.fqn, axes=_axes(item), into=place) for item, place in zip(tensors, places, strict=True)
        )
        for item, place in zip(tensors, places, strict=True):
            planner.commit_tensor(item, place)
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                if not isinstance(planner, JsonLoadPlanner):
                    raise InvalidOption(
                        f"{item.storage_index.fqn!r} is no tensor, and {type(planner).__name__} would unpickle it: load with "
                        "planner=loader.checkpoint.LoadPlanner()"
                    )
                planner.load_bytes(item, io.BytesIO(json.dumps(values[item.storage_index.fqn]).encode()))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _reader(self) -> TensorReader:
        if self.url is None:
            raise InvalidOption("no URL: give one to CheckpointReader, or as checkpoint_id to load")
        if self._opened is None:
            self._opened = TensorReader(self.url, version=self._version, snapshot=self._snapshot, client=self._store)
        return self._opened


def _checked(checkpoint: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if checkpoint is None:
        return {"values": {}, "paths": {}}
    if checkpoint.get("format") != CHECKPOINT_FORMAT:
        found = str(checkpoint.get("format"))[:80]
        raise FormatUnsupported(f"the checkpoint has format {found}, this Forebay reads {CHECKPOINT_FORMAT}: upgrade")
    if not all(isinstance(checkpoint.get(part), dict) for part in ("values", "paths")):
        raise TensorsCorrupt(f"a checkpoint has values and paths, found {sorted(checkpoint)}")
    return checkpoint


def _stored(contents: Contents) -> Iterator[tuple[str, Stored]]:
    """The tensors that torch can be told of: those with bytes of their own."""
    if contents.ties:
        names = ", ".join(sorted(contents.ties)[:20])
        raise InvalidOption(f"tensors that share memory ({names}) are loaded with load_tensors, which has them share it again")
    return ((name, stored) for name, stored in contents.tensors.items() if not name.startswith(HIDDEN_PREFIX))


def _described(stored: Stored) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=stored.dtype),
        size=torch.Size(stored.shape),
        # One chunk, however the tensor is stored: which bytes of which shard those are is this reader's business.
        chunks=[ChunkStorageMetadata(offsets=torch.Size([0] * len(stored.shape)), sizes=torch.Size(stored.shape))],
    )


def _axes(item: ReadItem) -> tuple[range, ...]:
    return tuple(range(offset, offset + length) for offset, length in zip(item.storage_offsets, item.lengths, strict=True))
