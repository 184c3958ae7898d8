"""A tiny dataset of every column type, put together in memory from the codecs alone, and the pinned bytes of it.

``python -m tests.golden.tiny`` writes the files anew. They change with the format only: a change needs a new format version,
and the old files stay so that reading them stays tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loader.assignment import TAILS, Assignment
from loader.block import (
    BlockBuilder,
    BlockTableBuilder,
    decode_column_into,
    decode_value,
    fixed_view,
    new_compressor,
    variable_view,
)
from loader.columns import Schema
from loader.index import FOOTER_BYTES, DatasetIndex, Footer
from loader.lane import LaneEntry
from loader.mixture import Component, Mixture
from loader.order import LaneOrder, lane_lengths, lane_permutation, locate_row, row_number
from loader.transforms import row_generator

FOLDER = Path(__file__).parent
NUM_ROWS = 23
NUM_LANES = 4
SCHEMA = Schema.of(
    {
        "label": "int64",
        "seen": "bool",
        "pixels": "float32[8,8]",
        "half": "float16[2]",
        "phase": "complex64",
        "tokens": "uint16[*]",
        "boxes": "float64[*,2]",
        "blob": "bytes",
        "text": "str",
        "meta": "json",
        "photo": "jpeg",
        "icon": "png",
    }
)


def tiny_row(row: int) -> dict[str, Any]:
    """Row number `row` of the tiny dataset."""
    return {
        "label": row - 5,
        "seen": row % 3 == 0,
        "pixels": (np.arange(64, dtype=np.float32).reshape(8, 8) // 8 + row),
        "half": np.array([row / 4, -row], np.float16),
        "phase": complex(row, -0.5),
        "tokens": np.arange(row % 5, dtype=np.uint16) * 1000,
        "boxes": np.full((row % 3, 2), row / 7),
        "blob": bytes(range(row)),
        "text": "wörter " * (row % 4),
        "meta": {"row": row, "tags": ["a", None, 1.5], "ü": {}},
        "photo": b"\xff\xd8\xff" + bytes([row]),
        "icon": b"\x89PNG\r\n\x1a\n" + bytes([row] * 3),
    }


def assemble(
    rows: Iterable[Mapping[str, Any]], *, schema: Schema, num_lanes: int, block_size_bytes: int, compression: str
) -> bytes:
    """The bytes of the object that holds `rows` as a dataset."""
    compressor = new_compressor(compression)
    samples = [schema.check_sample(row) for row in rows]
    content, tables, lanes = b"", b"", []
    for number in range(num_lanes):
        start, table = len(content), BlockTableBuilder(num_columns=len(schema))
        builder = BlockBuilder(schema, block_size_bytes=block_size_bytes)
        for index in range(int(lane_lengths(len(samples), num_lanes)[number])):
            sample = samples[int(row_number(number, index, num_lanes=num_lanes))]
            if not builder.append(sample):
                content += _finish(builder, table, compressor)
                builder = BlockBuilder(schema, block_size_bytes=block_size_bytes)
                assert builder.append(sample)
        if builder.rows:
            content += _finish(builder, table, compressor)
        encoded = table.build().encode()
        lanes.append(LaneEntry.of(table.build(), encoded_table=encoded, offset=start, group=f"lane-{number}"))
        tables += encoded
    dataset = DatasetIndex.of(schema, block_size_bytes=block_size_bytes, compression=compression, lanes=tuple(lanes))
    return content + tables + dataset.encode()


def _finish(builder: BlockBuilder, table: BlockTableBuilder, compressor: Any) -> bytes:
    block = builder.encode(compressor)
    table.append(block)
    return b"".join(part.data for part in block.parts)


def open_index(content: bytes) -> DatasetIndex:
    """The index of a dataset's bytes."""
    footer = Footer.decode(content[-FOOTER_BYTES:], object_bytes=len(content))
    return DatasetIndex.decode(content[footer.index_offset :][: footer.index_bytes], footer=footer)


def table_bytes(index: DatasetIndex, lane: int, content: bytes) -> bytes:
    """The encoded block table of a lane."""
    start = index.table_offsets[lane]
    return content[start : start + index.lanes[lane].table_bytes]


def read_rows(content: bytes) -> list[dict[str, Any]]:
    """All rows of a dataset's bytes, in written order."""
    index = open_index(content)
    columns = index.schema
    rows: list[dict[str, Any]] = [{} for _ in range(index.num_rows)]
    for number, lane in enumerate(index.lanes):
        table = index.decode_table(number, table_bytes(index, number, content))
        first = 0
        for block, num_rows in enumerate(table.rows.tolist()):
            for column, (name, column_type) in enumerate(columns.items()):
                at = lane.offset + int(table.offsets[block, column])
                out = memoryview(bytearray(int(table.raw_size[block, column])))
                decode_column_into(
                    memoryview(content)[at : at + int(table.stored_size[block, column])],
                    codec=int(table.codec[block, column]),
                    raw_size=len(out),
                    check=int(table.check[block, column]),
                    out=out,
                    where=f"lane {number}, block {block}, column {name!r}",
                )
                numbers = row_number(number, np.arange(first, first + num_rows), num_lanes=index.num_lanes)
                if column_type.is_fixed:
                    values: list[Any] = list(fixed_view(out, column_type, num_rows))
                else:
                    offsets, data = variable_view(out, num_rows)
                    values = [decode_value(column_type, data[offsets[i] : offsets[i + 1]]) for i in range(num_rows)]
                for row, value in zip(numbers, values, strict=True):
                    rows[row][name] = value
            first += num_rows
    return rows


def tiny_dataset(compression: str) -> bytes:
    """The bytes of the tiny dataset."""
    rows = [tiny_row(row) for row in range(NUM_ROWS)]
    return assemble(rows, schema=SCHEMA, num_lanes=NUM_LANES, block_size_bytes=1024, compression=compression)


def order_vectors() -> dict[str, Any]:
    """Permutations, lane orders and shares that must never change under their algorithm's name."""
    digest = "00112233445566778899aabbccddeeff" * 2
    orders = []
    for seed, epoch, lane in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**64 - 1, 2**63, 65535)):
        order = LaneOrder(digest=digest, seed=seed, epoch=epoch, lane=lane, block_rows=[3, 7, 1, 20, 20])
        orders.append(
            {
                "digest": digest,
                "seed": seed,
                "epoch": epoch,
                "lane": lane,
                "block_rows": [3, 7, 1, 20, 20],
                "visits": order.visits.tolist(),
                "rows": [order.rows_of_visit(visit).tolist() for visit in range(5)],
            }
        )
    shares = []
    for tail in TAILS:
        options = {"num_rows": 29, "num_lanes": 6, "world_size": 3, "batch_size": 4, "start": 1, "tail": tail}
        assignment = Assignment(**options)  # type: ignore[arg-type]
        runs = [[assignment.share(batch, run=run) for batch in range(assignment.num_batches())] for run in range(3)]
        positions = [[share.positions.tolist() for share in run] for run in runs]
        shares.append({**options, "positions": positions, "pad": [[share.pad.tolist() for share in run] for run in runs]})
    draws = []
    for seed, epoch, row in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (2**64 - 1, 2**63, 2**48 - 1)):
        bits = row_generator(seed=seed, epoch=epoch, row=row).bit_generator.random_raw(5)
        draws.append({"seed": seed, "epoch": epoch, "row": row, "draws": [int(draw) for draw in np.asarray(bits)]})
    return {
        "row_draws": draws,
        "lane_permutation": {str(lanes): lane_permutation(lanes).tolist() for lanes in (1, 2, 3, 5, 8, 12)},
        "locate_row": [values.tolist() for values in locate_row(range(13), num_lanes=5)],
        "lane_orders": orders,
        "assignments": shares,
        "mixture": mixture_vectors(),
    }


def mixture_vectors() -> dict[str, Any]:
    """Where the positions of a mixture are, which must never change under its algorithm's name."""
    shapes = ((7, 2, 3000), (2, 1, 96), (100, 8, 1000))
    components = tuple(
        Component(digest=f"{number:02x}" * 32, num_rows=rows, num_lanes=lanes, weight=weight)
        for number, (rows, lanes, weight) in enumerate(shapes)
    )
    mixture = Mixture(components=components, seed=7, epoch_samples=50)
    return {
        "digest": mixture.digest,
        "lane_order": list(mixture.lane_order),
        "before": [mixture.before(position) for position in (0, 1, 2, 3, 1000, 4095, 4096, 5000, 1 << 40)],
        "begins": [list(mixture.epoch(epoch).begins) for epoch in (0, 1, 100)],
        "steps": [mixture.epoch(epoch).steps(np.arange(0, 51, 10)).tolist() for epoch in (0, 1, 100)],
    }


if __name__ == "__main__":
    (FOLDER / "tiny-raw-2.forebay").write_bytes(tiny_dataset("none"))
    (FOLDER / "tiny-zstd-2.forebay").write_bytes(tiny_dataset("zstd:3"))
    (FOLDER / "order.json").write_text(json.dumps(order_vectors(), separators=(",", ":")) + "\n")
