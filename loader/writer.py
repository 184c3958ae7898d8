"""The writer of a dataset: rows in, one object with one commit out.

Theory of operation
-------------------
Rows are checked against the schema, gathered (`loader.lanes.RowBuffer`), dealt to the lanes by strides
(`loader.lanes.LaneDealer`), encoded by all cores and stored as chunks in the background (`loader.staging.LaneStaging`).
`commit` stores what is left, adds the index and gives the whole its name in one compare-and-swap. Before that nothing is
visible; a writer that dies leaves nothing, unless it has named its parts (`ShardWriter.name_part`) for another to go on with.
Chunks without a name are garbage two epochs of garbage collection later, so a writer that lives so long touches its own again.

Memory is bounded: with L lanes, L x (block + chunk), where a chunk is 8 MiB up to 64 lanes, 512 MiB / L up to 512 lanes and
1 MiB beyond; and besides 32 MiB of rows until the number of lanes is known, 8 MiB afterwards, 64 MiB in encoding, and
``max_in_flight_chunks`` chunks of the client's configuration in transfer.

Invariant: the dataset's digest depends on schema, rows, L and block size, not on threads, chunks or batches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import TracebackType
from typing import Final, Literal

from client import anchoring
from client.catalog import Commit
from client.client import Client
from client.manifest import Ref
from client.names import format_url, parse_url
from client.objects import ObjectStore
from client.parallel import usable_cores
from client.placement import choose_groups
from client.record import Condition, ObjectInfo, ObjectRecord
from client.upload import make_content
from client.write_id import new_write_id
from loader.block import check_block_size, parse_compression
from loader.columns import ColumnType, EncodedColumn, Schema
from loader.dataset_record import CONTENT_TYPE, METADATA_KEY, PART_CONTENT_TYPE, check_metadata, described
from loader.errors import WriterClosed
from loader.index import DatasetIndex
from loader.lanes import (
    DEAL_BYTES,
    DECIDE_BYTES,
    DEFAULT_MAX_LANES,
    LaneDealer,
    RowBuffer,
    check_num_lanes,
    choose_num_lanes,
    least_bytes,
)
from loader.staging import Data, LaneProgress, LaneStaging, cut

__all__ = ["DEFAULT_BLOCK_BYTES", "ShardWriter"]

DEFAULT_BLOCK_BYTES: Final = 1 << 20


class ShardWriter:
    """Writes a dataset; use it as a context manager from one thread.

    Leaving the context commits; an exception inside it aborts, and nothing becomes visible.

    Parameters
    ----------
    url : str
        ``forebay://bucket/key``. What the key held before is replaced unless a condition says otherwise.
    columns : mapping of str to str
        Column types by name, in the order in which they are stored: ``{"tokens": "uint16[2048]", "source": "str"}``.
    compression : str
        ``zstd:1`` to ``zstd:22``, or ``none``.
    block_size_bytes : int, optional
        Decoded bytes of a block; 1 MiB by default. Take 4 MiB from 1 TB up.
    num_lanes : int, optional
        Up to 1,024; ask for 1,024 when more than 256 ranks will read. By default a power of two, one for each 128 KiB
        up to 256, decided when 32 MiB have been written or at the commit.
    endpoints : str or list of str, optional
        As `client.Client` takes them.
    client : ObjectStore, optional
        Used instead of a new client, and left open.
    metadata : mapping, optional
        Text to keep with the object, up to 8 KiB.
    if_match, if_none_match : str, optional
        Conditions of the commit, as `client.Client.put` takes them.

    Attributes
    ----------
    num_rows : int
        Rows written so far.
    info : ObjectInfo or None
        What was committed.
    index : DatasetIndex or None
        The index of what was committed.

    Raises
    ------
    InvalidOption, ColumnError, InvalidName
        For a wrong argument, before anything is contacted.
    BucketNotFound
        Says how to create it.
    """

    def __init__(
        self,
        url: str,
        columns: Mapping[str, str | ColumnType],
        compression: str = "zstd:3",
        block_size_bytes: int | None = None,
        num_lanes: int | None = None,
        *,
        endpoints: str | list[str] | None = None,
        client: ObjectStore | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> None:
        self._bucket, self._key = parse_url(url)
        self._schema = Schema.of(columns)
        parse_compression(compression)
        self._compression = compression
        self._block_size_bytes = check_block_size(DEFAULT_BLOCK_BYTES if block_size_bytes is None else block_size_bytes)
        self._num_lanes = None if num_lanes is None else check_num_lanes(num_lanes)
        self._metadata = check_metadata(metadata or {})
        self._condition = Condition(if_match=if_match, if_none_match=if_none_match)
        self._write_id = new_write_id()
        self._buffer = RowBuffer(self._schema)
        self._dealer: LaneDealer | None = None
        self._staging: LaneStaging | None = None
        self._state: Literal["open", "committed", "aborted", "failed"] = "open"
        self.num_rows = 0
        self.info: ObjectInfo | None = None
        self.index: DatasetIndex | None = None
        self._owned_client: Client | None = None
        if client is None:
            client = self._owned_client = Client(endpoints)
        self._client = client
        with self._closed_on_error():
            # Asked here, so that a bucket that doesn't exist is noticed before hours of work.
            self._policy = self._client.catalog.bucket(self._bucket)
        self._uploader = self._client.uploader(self._policy.replicas, ack=self._policy.ack)

    @property
    def schema(self) -> Schema:
        """The columns."""
        return self._schema

    def write(self, sample: Mapping[str, object]) -> None:
        """Append one row.

        Raises
        ------
        ColumnError
            If a value is not what its column's type says. The row is not taken; the writer goes on.
        WriterClosed
            If the writer has committed, aborted or failed.
        StoreError
            What storing earlier rows in the background raised; the writer has failed then.
        """
        self._check_open()
        self._buffer.append(self._schema.check_sample(sample))
        self.num_rows += 1
        self._deal_gathered()

    def write_batch(self, columns: Mapping[str, object]) -> None:
        """Append rows that are given as columns: arrays [rows, *shape] or sequences, all of one length.

        Raises as `write` does; if it is `ColumnError`, none of the rows is taken.
        """
        self._check_open()
        self.write_checked(self._schema.check_batch(columns))

    def write_checked(self, batch: tuple[EncodedColumn, ...]) -> None:
        """Append rows that `Schema.check_batch` of `schema` has checked, here or in another process."""
        self._check_open()
        self.num_rows += len(batch[0])
        if self._dealer is None or least_bytes(batch) < DEAL_BYTES:
            self._buffer.extend(batch)
            self._deal_gathered()
            return
        with self._closed_on_error():
            self._keep()
            # Large enough as it is: not copied.
            self._dealer.deal(self._buffer.take())
            self._dealer.deal(batch)

    @property
    def stored_bytes(self) -> int:
        """Of the chunks that this writer has stored so far."""
        return 0 if self._staging is None else self._staging.stored_bytes

    def progress(self, told: Sequence[tuple[int, int]] = ()) -> tuple[LaneProgress, ...]:
        """Wait for the stores under way, and say what is durable of each lane, as `LaneStaging.progress` does.

        Nothing before the lanes are open, which needs 32 MiB of rows unless their number was given.
        """
        self._check_open()
        if self._staging is None:
            return ()
        with self._closed_on_error():
            self._staging.drain()
        return self._staging.progress(told)

    def go_on(self, lanes: Sequence[LaneProgress], *, first_row: int) -> None:
        """Take up what another writer of the same columns, block size and rows has left behind, before anything is written.

        Parameters
        ----------
        lanes : sequence of LaneProgress
            What it said of its progress.
        first_row : int
            Number of the row that will be written first. Rows from there on that are durable already are passed over.

        Raises
        ------
        NotEnoughReplicas
            If some of the chunks are not there any more.
        """
        self._check_open()
        assert not self.num_rows and self._dealer is None
        with self._closed_on_error():
            _, staging = self._open_lanes(lanes, first_row=first_row)
            self._uploader.anchor_again(staging.refs())
        self.num_rows = first_row

    def hand_over(self) -> tuple[LaneProgress, ...]:
        """Store all rows, for another writer to go on with and to commit; this one is closed."""
        self._check_open()
        with self._closed_on_error():
            lanes = self._deal_rest().flush()
        self._close("aborted")
        return lanes

    def name_part(self, key: str, refs: Sequence[Ref], description: bytes, *, metadata: Mapping[str, str]) -> ObjectInfo:
        """Make an object of chunks that were stored, so that they outlive this writer: the chunks, then `description`.

        Raises
        ------
        PreconditionFailed
            If there is such an object: another writer goes on from the same point.
        """
        self._check_open()
        with self._closed_on_error():
            pieces = cut(description, size_bytes=self._client.config.chunk_size_bytes)
            refs = [*refs, *map(self._uploader.store, pieces)]
            record = self._record(refs, write_id=new_write_id(), kind=PART_CONTENT_TYPE, metadata=metadata)
            write = Commit(bucket=self._bucket, key=key, record=record, condition=Condition(if_none_match="*"))
            # An anchor holds for all that this writer has stored, or for nothing: so all of it is touched for a new one.
            return anchoring.commit(self._client.catalog, write, self._uploader, refs_of=self._all_refs)

    def commit(self) -> ObjectInfo:
        """Store what is left and give the dataset its name. The writer is closed afterwards, in any case.

        Raises
        ------
        PreconditionFailed
            If the condition of the commit doesn't hold.
        WriterClosed, StoreError
            As `write`.
        """
        self._check_open()
        with self._closed_on_error():
            self.index, refs = self._store_rest()
            metadata = {**self._metadata, METADATA_KEY: described(self.index)}
            record = self._record(refs, write_id=self._write_id, kind=CONTENT_TYPE, metadata=metadata)
            write = Commit(bucket=self._bucket, key=self._key, record=record, condition=self._condition)
            self.info = self._client.commit(write, uploader=self._uploader)
        self._close("committed")
        return self.info

    def abort(self) -> None:
        """Give up what was written; nothing becomes visible."""
        if self._state == "open":
            self._close("aborted")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        elif self._state == "failed":
            # The error was raised once already, but a block that goes on regardless must not look like success.
            self._check_open()
        elif self._state == "open":
            self.commit()

    def _all_refs(self, record: ObjectRecord) -> Iterator[Ref]:
        staged = () if self._staging is None else self._staging.refs()
        return chain(staged, self._client.refs_of(record))

    def _keep(self) -> None:
        """Touch what was stored again if an epoch of garbage collection has passed."""
        if self._staging is not None and self._uploader.is_outdated:
            # None may be on its way under the old anchor.
            self._staging.drain()
            self._uploader.anchor_again(self._staging.refs())

    def _deal_gathered(self) -> None:
        undecided = self._dealer is None and self._num_lanes is None
        if self._buffer.num_bytes < (DECIDE_BYTES if undecided else DEAL_BYTES):
            return
        with self._closed_on_error():
            dealer = self._dealer or self._open_lanes(self._new_lanes(self._num_lanes or DEFAULT_MAX_LANES))[0]
            self._keep()
            dealer.deal(self._buffer.take())

    def _new_lanes(self, num_lanes: int) -> list[LaneProgress]:
        layout, replicas = self._client.cluster.layout, self._policy.replicas
        groups = choose_groups(layout, name=self._write_id, num_groups=num_lanes, replicas=replicas)
        return [LaneProgress(group=group) for group in groups]

    def _open_lanes(self, lanes: Sequence[LaneProgress], *, first_row: int = 0) -> tuple[LaneDealer, LaneStaging]:
        config = self._client.config
        staging = LaneStaging(
            lanes,
            num_columns=len(self._schema),
            compression=self._compression,
            store=self._store,
            chunk_size_bytes=config.chunk_size_bytes,
            in_flight_bytes=config.max_in_flight_chunks * config.chunk_size_bytes,
            encode_threads=usable_cores(),
            store_threads=config.max_threads,
        )
        dealer = LaneDealer(
            self._schema,
            num_lanes=len(lanes),
            block_size_bytes=self._block_size_bytes,
            emit=staging.add,
            first_row=first_row,
            rows_done=[lane.num_rows for lane in lanes],
        )
        self._dealer, self._staging = dealer, staging
        return dealer, staging

    def _store(self, payload: Data, group: str, stop: threading.Event) -> Ref:
        return self._uploader.store(payload, group=group, stop=stop)

    def _deal_rest(self) -> LaneStaging:
        dealer, staging = self._dealer, self._staging
        if dealer is None or staging is None:
            chosen = choose_num_lanes(self._buffer.num_rows, decoded_bytes=self._buffer.num_bytes)
            dealer, staging = self._open_lanes(self._new_lanes(self._num_lanes or chosen))
        dealer.deal(self._buffer.take())
        dealer.finish()
        return staging

    def _store_rest(self) -> tuple[DatasetIndex, list[Ref]]:
        """Store the open blocks, the tables and the index; all references in the object's order."""
        staged = self._deal_rest().finish()
        index = DatasetIndex.of(
            self._schema, block_size_bytes=self._block_size_bytes, compression=self._compression, lanes=staged.lanes
        )
        pieces = cut(staged.tables + index.encode(), size_bytes=self._client.config.chunk_size_bytes)
        return index, [*staged.refs, *map(self._uploader.store, pieces)]

    def _record(self, refs: Sequence[Ref], *, write_id: str, kind: str, metadata: Mapping[str, str]) -> ObjectRecord:
        return ObjectRecord(
            write_id=write_id,
            content=make_content(refs, self._uploader),
            content_type=kind,
            metadata=metadata,
            ack=self._policy.ack,
            replicas=self._policy.replicas,
            created_s=time.time(),
        )

    def _check_open(self) -> None:
        if self._state == "open":
            failure = None if self._staging is None else self._staging.failure
            if failure is None:
                return
            self._close("failed")
            raise failure
        url = format_url(self._bucket, self._key)
        words = {
            "committed": f"the dataset {url} is committed; a new ShardWriter would replace it",
            "aborted": f"the writer of {url} was aborted and nothing was committed; begin again with a new ShardWriter",
            "failed": f"the writer of {url} failed earlier and nothing was committed; begin again with a new ShardWriter",
        }
        raise WriterClosed(words[self._state])

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        # Also at Ctrl-C: part of a batch may have been dealt, so that no commit of the rest would be what was asked for.
        try:
            yield
        except BaseException:
            self._close("failed")
            raise

    def _close(self, state: Literal["committed", "aborted", "failed"]) -> None:
        self._state = state
        if self._staging is not None:
            self._staging.close()
        # A writer that is still referred to, as in a notebook, must not keep its blocks.
        self._buffer, self._dealer, self._staging = RowBuffer(self._schema), None, None
        if self._owned_client is not None:
            self._owned_client.close()
