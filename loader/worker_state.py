"""What DataLoader workers know of the stream, and how a StatefulDataLoader's state becomes one that every rank can load.

Each worker of n makes every n-th batch, so none knows what the training loop has consumed. torchdata's StatefulDataLoader asks
each worker for its state after each step, and keeps those that belong to what it has yielded. Together they say exactly how
far the loop is: where all began, and how many batches of each worker were taken.

Pure: this module knows neither torch nor torchdata, only the fields that torchdata 0.11 uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from loader.errors import StateInvalid, StateUnavailable
from loader.state import LoaderState

__all__ = ["WorkerState", "state_of_loader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """How far one worker is.

    Attributes
    ----------
    begin : LoaderState
        Where all workers began.
    num_rows, global_batch_size : int
        What a number of batches means: rows of the dataset, and of a batch of all ranks.
    worker, num_workers : int
        Which one of how many.
    batches : int
        Batches that it has yielded completely.
    samples : int
        Samples of its next batch that it has yielded already.
    """

    begin: LoaderState
    num_rows: int
    global_batch_size: int
    worker: int
    num_workers: int
    batches: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        """A dict of numbers, and `begin`."""
        return asdict(self) | {"begin": self.begin.to_json()}

    @classmethod
    def from_json(cls, value: object) -> WorkerState:
        """Inverse of `to_json`; raises `StateInvalid`."""
        names = [entry.name for entry in fields(cls)]
        if not isinstance(value, Mapping) or value.keys() != set(names):
            raise StateInvalid(f"a worker's state has the fields {', '.join(names)}, found {str(value)[:400]}")
        numbers = {name: value[name] for name in names if name != "begin"}
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise StateInvalid(f"a worker's state has numbers of 0 or more, found {numbers}")
        return cls(begin=LoaderState.from_json(value["begin"]), **numbers)


def state_of_loader(loader_state: Mapping[str, Any]) -> LoaderState:
    """The state of the stream after what a StatefulDataLoader has yielded.

    Parameters
    ----------
    loader_state : mapping
        What its ``state_dict`` returned, for any number of workers.

    Raises
    ------
    StateInvalid
        If it is something else, or the loader was over another kind of dataset.
    StateUnavailable
        If what was yielded is not the beginning of the stream, so that no state of all ranks describes it.
    """
    if isinstance(loader_state, Mapping) and "dataset_state" in loader_state:
        # num_workers=0: the dataset itself has said where it is.
        return LoaderState.from_json(loader_state["dataset_state"])
    try:
        snapshot = loader_state["_snapshot"]
        steps, steps_since = int(snapshot["_snapshot_step"]), int(loader_state["_steps_since_snapshot"])
        found = [worker["dataset_state"] for worker in snapshot["_worker_snapshots"].values()]
    except (KeyError, TypeError, AttributeError) as exc:
        raise StateInvalid(
            f"expected what state_dict() of a torchdata StatefulDataLoader returns, found {str(loader_state)[:200]}"
        ) from exc
    workers = sorted(map(WorkerState.from_json, found), key=lambda worker: worker.worker)
    batches = _batches_in_order(workers)
    # Between snapshots only steps are counted. A step is a batch, if it was one so far.
    if steps_since and (steps != batches or steps == 0):
        raise StateUnavailable(
            f"{steps_since} steps were made since the workers told how far they are: use snapshot_every_n_steps=1"
        )
    first = workers[0]
    consumed = first.begin.samples_consumed + (batches + steps_since) * first.global_batch_size
    return replace(first.begin, samples_consumed=min(first.num_rows, consumed))


def _batches_in_order(workers: Sequence[WorkerState]) -> int:
    """How many batches all workers have yielded together, if these are the first ones of the stream."""
    count = len(workers)
    together = {(worker.begin, worker.num_rows, worker.global_batch_size, worker.num_workers) for worker in workers}
    if [worker.worker for worker in workers] != list(range(count)) or len(together) != 1 or workers[0].num_workers != count:
        raise StateInvalid(f"expected the states of workers that began together, found {str(workers)[:400]}")
    batches = [worker.batches for worker in workers]
    # Batch k is made by worker k mod n, so of the first b batches worker w has made those from w on, every n-th.
    in_order = [len(range(worker, sum(batches), count)) for worker in range(count)]
    samples = [worker.samples for worker in workers]
    if batches != in_order or any(samples):
        raise StateUnavailable(
            f"the workers' {batches} batches, and {samples} samples of further ones, are not the beginning of the stream: ask "
            "where all workers have yielded equally many whole batches, or let the dataset make the loader's batches"
        )
    return sum(batches)
