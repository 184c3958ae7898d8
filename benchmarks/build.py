"""What building a dataset costs beside what it can't do without: zstd and the hashes of the same bytes, in the same run.

``make bench SUITE=build`` makes 80 MB of each kind of input and builds it into a store in memory, so that what is counted is
reading, checking, dealing to lanes, compressing and hashing, and not the nodes' work. CPU seconds of the process and its
children are compared, which other work on the machine disturbs less than time; one thread reads, for starting processes would
count more than their work. The sides take turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import blake3
import numpy as np
import xxhash
import zstandard
from rich.console import Console
from rich.table import Table

from loader.build import build_dataset
from loader.export import export_dataset
from loader.lanes import encoded_bytes
from loader.reader import DatasetReader
from loader.row_batches import row_batches
from tests.support.fake_store import FakeStore
from tests.unit.loader.watched_store import watched_store

TOKENS = (20_000, 2048)
NUM_BLOBS, BLOB_BYTES = 800, 100_000
NUM_TEXTS = 100_000
WORDS = [f"word{number}" for number in range(2000)]
URL = "forebay://data/set"


def tokens(path: Path) -> None:
    rng = np.random.default_rng(1)
    np.save(path, np.minimum(rng.zipf(1.3, TOKENS), 60_000).astype(np.uint16))


def blobs(path: Path) -> None:
    rng = np.random.default_rng(2)
    with tarfile.open(path, "w") as archive:
        for number in range(NUM_BLOBS):
            for suffix, data in (("jpg", b"\xff\xd8\xff" + rng.bytes(BLOB_BYTES)), ("cls", str(number % 1000).encode())):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def texts(path: Path) -> None:
    rng = np.random.default_rng(3)
    with path.open("w") as file:
        for number in range(NUM_TEXTS):
            words = " ".join(WORDS[place] for place in rng.zipf(1.4, 100) % len(WORDS))
            file.write(json.dumps({"id": number, "text": words}) + "\n")


def cpu_s(call: Callable[[], object]) -> float:
    before = os.times()
    call()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def bare(raw: bytes, *, compressor: zstandard.ZstdCompressor | None) -> None:
    """What a writer can't do without: a check and a frame for each block, and an id and a check for what is stored."""
    view = memoryview(raw)
    for start in range(0, len(view), 1 << 20):
        block = view[start : start + (1 << 20)]
        xxhash.xxh3_64_intdigest(block)
        stored = block if compressor is None else compressor.compress(block)
        xxhash.xxh3_64_intdigest(stored)
        blake3.blake3(stored).digest()


def decoded(reader: DatasetReader, *, images: bool) -> bytes:
    """All values of a dataset in images, which are stored as they are, or in the other columns."""
    parts = []
    for batch in row_batches(reader):
        for column, kind in zip(batch, reader.schema.types, strict=True):
            if kind.is_image == images:
                parts.append(b"".join(column) if isinstance(column, list) else column.tobytes())
    return b"".join(parts)


def alone(reader: DatasetReader) -> Callable[[], None]:
    """What zstd and the hashes take for all that a dataset holds."""
    plain, packed = decoded(reader, images=True), decoded(reader, images=False)

    def run() -> None:
        bare(plain, compressor=None)
        bare(packed, compressor=zstandard.ZstdCompressor(level=3))

    return run


def inputs(folder: Path, store: FakeStore) -> Mapping[str, Path]:
    """A file or folder of each kind; the formats of others hold the tokens."""
    made = {"tokens, .npy": folder / "tokens.npy", "blobs, tar": folder / "blobs.tar", "texts, .jsonl": folder / "texts.jsonl"}
    for make, path in zip((tokens, blobs, texts), made.values(), strict=True):
        make(path)
    build_dataset([made["tokens, .npy"]], URL, client=store)
    for name, compression in (("mds", "none"), ("mds", "zstd:3"), ("parquet", "zstd:3")):
        label = f"tokens, {name}" + (", zstd" if compression != "none" else "")
        made[label] = folder / f"{name}-{compression[:4]}"
        export_dataset(DatasetReader(store, "data", "set"), made[label], file_format=name, compression=compression)  # type: ignore[arg-type]
    return made


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    table = Table(title=f"CPU seconds a GB of decoded rows, median of {rounds} rounds (least to most)")
    for heading in ("input", "MB decoded", "zstd and hashes alone", "build", "build / alone"):
        table.add_column(heading, justify="left" if heading == "input" else "right")
    with tempfile.TemporaryDirectory() as folder, watched_store() as (store, catalog, _):
        for name, path in inputs(Path(folder), store).items():
            result = build_dataset([path], URL, client=store)
            reader = DatasetReader(store, "data", "set")
            size, hashed = sum(map(encoded_bytes, row_batches(reader))), alone(reader)
            figures: list[tuple[float, float]] = []
            for _ in range(rounds):
                built = partial(build_dataset, [path], URL, client=store, num_workers=1)
                figures.append((cpu_s(hashed) * 1e9 / size, cpu_s(built) * 1e9 / size))
            sides = [sorted(side) for side in zip(*figures, strict=True)]
            cells = [f"{statistics.median(side):.2f} ({side[0]:.2f} to {side[-1]:.2f})" for side in sides]
            ratio = statistics.median(build / bare_ for bare_, build in figures)
            table.add_row(name, f"{size / 1e6:.0f}", *cells, f"{ratio:.2f}")
            assert result.index.num_rows == reader.index.num_rows
            catalog.history.clear()
            for node in store.fake_chunks.nodes.values():
                node.clear()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
