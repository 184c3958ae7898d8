"""Planners for `torch.distributed.checkpoint` that write and read what is no tensor as JSON, and list all that does not fit.

torch's own planners pickle such values. Give these to `save`, `async_save` and `load` beside `CheckpointWriter` and
`CheckpointReader`.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, WriteItem, WriteItemType

from loader.checkpoint.values import decode_value, encode_value
from loader.errors import TensorMismatch

__all__ = ["LoadPlanner", "SavePlanner"]


class SavePlanner(DefaultSavePlanner):
    """torch's planner of a save, but for values that are no tensors. Takes the same arguments."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 - torch's name of it
        """What is stored of `object`: a tensor as it is, anything else as JSON; raises `InvalidOption`."""
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(json.dumps(encode_value(object, name=write_item.index.fqn)).encode())
        return super().transform_object(write_item, object)


class LoadPlanner(DefaultLoadPlanner):
    """torch's planner of a load, but for values that are no tensors, and for one error that lists all that does not fit.

    Takes the same arguments; ``allow_partial_load=True`` leaves alone what the checkpoint does not have.
    """

    def create_local_plan(self) -> LoadPlan:
        """The plan of this rank; raises `TensorMismatch`."""
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        wrong = []
        for name, value in self.state_dict.items():
            found = stored.get(name)
            if found is None:
                if not self.allow_partial_load:
                    wrong.append(f"{name!r} is not in it")
            elif isinstance(value, torch.Tensor) != isinstance(found, TensorStorageMetadata):
                kind = "no tensor" if isinstance(found, BytesStorageMetadata) else "a tensor"
                wrong.append(f"{name!r} is {kind}, asked for as {type(value).__name__}")
            elif isinstance(found, TensorStorageMetadata) and (found.size, found.properties.dtype) != (
                value.size(),
                value.dtype,
            ):
                there = f"{found.properties.dtype} of shape {list(found.size)}"
                wrong.append(f"{name!r} is {there}, asked for as {value.dtype} of shape {list(value.size())}")
        if wrong:
            raise TensorMismatch("the checkpoint is not of this state: " + "; ".join(wrong))
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is no tensor into the state dict."""
        name, decoded = read_item.dest_index.fqn, decode_value(json.loads(value.getvalue()))
        if not self.flatten_state_dict:
            self.state_dict[name] = decoded
            return
        *parents, last = self.mappings[name]
        place: Any = self.original_state_dict
        for step in parents:
            place = place[step]
        place[last] = decoded
