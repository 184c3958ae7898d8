"""Writes the datasets in this folder with the libraries that they are of. It is no part of the tests, which only read.

``python tests/golden/peers/make.py mds|webdataset|litdata|huggingface`` from the top of the repository, in an environment of
its own that has the library. These were written by mosaicml-streaming 0.13.0, webdataset 1.0.2, litdata 0.2.76
and datasets 5.2.0.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from rows import rows  # type: ignore[import-not-found] # noqa: E402


def fresh(name: str) -> str:
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    return str(FOLDER / name)


def mds() -> None:
    from streaming.base import MDSWriter

    columns = {
        "id": "int",
        "score": "float64",
        "text": "str",
        "blob": "bytes",
        "small": "uint8",
        "tokens": "ndarray:uint16:8",
        "matrix": "ndarray",
        "ragged": "ndarray:int32",
        "extra": "json",
    }
    for name, compression, hashes in (("mds", None, ["sha1"]), ("mds-zstd", "zstd:3", ["sha1", "xxh64"])):
        with MDSWriter(out=fresh(name), columns=columns, compression=compression, hashes=hashes, size_limit=1024) as writer:
            for row in rows():
                writer.write({column: row[column] for column in columns})
    with MDSWriter(out=fresh("mds-pickle"), columns={"id": "int", "thing": "pkl"}) as writer:
        writer.write({"id": 1, "thing": {1, 2}})


def webdataset() -> None:
    import webdataset as wds

    for name in ("webdataset/part-0.tar", "webdataset/part-1.tar", "webdataset.tar.gz"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        with wds.TarWriter(str(FOLDER / name), mtime=0) as writer:
            for row in rows()[slice(4) if "part-0" in name else slice(4, None) if "part-1" in name else slice(None)]:
                values = {"cls": row["id"], "txt": row["text"], "json": row["extra"], "npy": row["tokens"], "bin": row["blob"]}
                long = "a" * 120 if name.endswith(".gz") else "a"
                writer.write({"__key__": f"in/{long}/{row['id']}", **values})


def litdata() -> None:
    import torch
    from litdata.streaming.cache import Cache
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.serializers import JsonLeaf

    def write(name: str, samples: list[Any], **options: Any) -> None:
        Path(fresh(name)).mkdir()
        cache = Cache(str(FOLDER / name), **options)
        for number, sample in enumerate(samples):
            cache[number] = sample
        cache.done()
        cache.merge()
        for lock in (FOLDER / name).glob("*.lock"):
            lock.unlink()

    names = ("id", "score", "flag", "text", "blob", "tokens", "matrix")
    samples = [{**{n: row[n] for n in names}, "deep": {"ragged": torch.from_numpy(row["ragged"])}} for row in rows()]
    write("litdata", samples, chunk_size=4)
    for level in ("chunk", "batch", "sample"):
        write(f"litdata-{level}", samples, chunk_size=4, compression="zstd", compression_level=level)
    nested = [{"id": row["id"], "extra": JsonLeaf(row["extra"])} for row in rows()]  # Mixed types: its own binary JSON.
    write("litdata-nested", nested, chunk_size=4)
    texts = [{"id": row["id"], "text": row["text"], "more": JsonLeaf({"k": [row["id"]]})} for row in rows()]
    write("litdata-arrow", texts, chunk_size=4)
    write("litdata-pickle", [{"id": 1, "thing": {1, 2}}], chunk_size=4)
    loader = TokensLoader(block_size=8)
    write(
        "litdata-tokens",
        [torch.from_numpy(row["tokens"].astype("int32")) for row in rows()],
        chunk_bytes=150,
        item_loader=loader,
    )


def huggingface() -> None:
    import datasets as hf

    names = ("id", "score", "flag", "text", "blob", "tokens", "matrix", "ragged")
    values = {name: [getattr(row[name], "tolist", lambda value=row[name]: value)() for row in rows()] for name in names}
    features = hf.Features(
        {
            "id": hf.ClassLabel(names=[f"class {number}" for number in range(9)]),
            "score": hf.Value("float64"),
            "flag": hf.Value("bool"),
            "text": hf.Value("string"),
            "blob": hf.Value("binary"),
            "tokens": hf.Sequence(hf.Value("uint16"), length=8),
            "matrix": hf.Array2D((2, 3), "float32"),
            "ragged": hf.Sequence(hf.Value("int32")),
        }
    )
    hf.Dataset.from_dict(values, features=features).save_to_disk(fresh("huggingface"), num_shards=2)


if __name__ == "__main__":
    {"mds": mds, "webdataset": webdataset, "litdata": litdata, "huggingface": huggingface}[sys.argv[1]]()
