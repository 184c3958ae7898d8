"""What a dataset can be built from, and which of the sources reads it.

Inputs are paths and URLs of files and folders, and patterns of them. They are taken in the order given, a folder or a pattern
in the order of its paths. A folder that says what it is, by its ``index.json`` (MosaicML's MDS, LitData) or ``state.json``
(Hugging Face's `save_to_disk`), is taken as that; otherwise names of files say it. All inputs of one dataset are of one kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from loader.columns import parse_column_type
from loader.errors import InvalidOption
from loader.input_file import Found, InputFile, find_inputs, opened
from loader.source_arrow import ARROW_SUFFIXES, HF_STATE, ArrowSource, open_hf
from loader.source_csv import CSV_SUFFIXES, CsvSource
from loader.source_files import FilesSource
from loader.source_jsonl import JSONL_SUFFIXES, JsonLinesSource
from loader.source_litdata import LitDataSource
from loader.source_mds import MdsSource
from loader.source_numpy import NPY_SUFFIXES, NPZ_SUFFIXES, NpySource, NpzSource
from loader.source_parquet import PARQUET_SUFFIXES, ParquetSource
from loader.source_rows import Source, SourceError
from loader.source_tar import TAR_SUFFIXES, TarSource

__all__ = ["Inputs", "Source", "SourceError", "open_source", "parse_columns"]

Inputs = Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]
"""Paths and URLs; or .npy files by the names that their columns should have."""

_KINDS: Final = {
    "Parquet": PARQUET_SUFFIXES,
    "JSON lines": JSONL_SUFFIXES,
    "CSV": CSV_SUFFIXES,
    "Arrow": ARROW_SUFFIXES,
    "WebDataset": TAR_SUFFIXES,
    ".npy": NPY_SUFFIXES,
    ".npz": NPZ_SUFFIXES,
}
_MDS, _LITDATA, _HF, _FILES = "MDS", "LitData", "Hugging Face", "files"
_INDEX: Final = "index.json"
_SHARD_SUFFIXES: Final = (".mds", ".mds.zstd")


def open_source(inputs: Inputs) -> Source:
    """The rows of `inputs`.

    Raises
    ------
    SourceError
        If an input doesn't exist, is given twice, or is of another kind than those before.
    """
    if isinstance(inputs, Mapping):
        return _named_columns(inputs)
    found = find_inputs([os.fspath(given) for given in inputs])
    kinds = [(name, kind, index) for each in found for name, kind, index in _kinds(each)]
    first_name, first_kind, _ = kinds[0]
    for name, kind, _ in kinds:
        if kind != first_kind:
            raise SourceError(
                f"{name} ({kind}) is of another kind than {first_name} ({first_kind}); a dataset is built from one "
                "kind, so choose with a pattern such as 'folder/*.parquet'"
            )
    files = [file for each in found for file in each.files]
    match first_kind:
        case "Parquet":
            return ParquetSource(files)
        case "JSON lines":
            return JsonLinesSource(files)
        case "CSV":
            return CsvSource(files)
        case "Arrow":
            return ArrowSource(files)
        case "WebDataset":
            return TarSource(files)
        case ".npy":
            return _npy(files)
        case ".npz":
            return NpzSource(files)
        case "Hugging Face":
            return open_hf(found)
        case "MDS":
            return MdsSource([(each, index) for each, (_, _, index) in zip(found, kinds, strict=True)])
        case "LitData":
            return LitDataSource([(each, index) for each, (_, _, index) in zip(found, kinds, strict=True)])
    return FilesSource(files, root=_common_root([each.root for each in found]))


def parse_columns(text: str) -> dict[str, str]:
    """Column types from ``name=type,name=type``; commas within ``[...]`` belong to the type.

    Raises
    ------
    InvalidOption
        If that is not what `text` is.
    """
    columns: dict[str, str] = {}
    for part in _split(text):
        name, equals, column_type = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not column_type:
            raise InvalidOption(f"--columns {text!r}: expected name=type,name=type, such as 'tokens=uint16[2048],text=str'")
        if name in columns:
            raise InvalidOption(f"--columns {text!r}: the column {name!r} is given twice")
        columns[name] = str(parse_column_type(column_type))
    return columns


def _split(text: str) -> Iterator[str]:
    start = depth = 0
    for at, char in enumerate(text):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _kinds(found: Found) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Of what kind the files of an input are: name, kind, and the index where there is one."""
    by_name = found.by_name()
    if found.is_folder and (HF_STATE in by_name or "dataset_dict.json" in by_name):
        yield found.root, _HF, {}
        return
    if found.is_folder and _INDEX in by_name:
        index = _read_index(by_name[_INDEX])
        if isinstance(index.get("shards"), list):
            yield found.root, _MDS, index
            return
        if isinstance(index.get("chunks"), list) and isinstance(index.get("config"), dict):
            yield found.root, _LITDATA, index
            return
    for file in found.files:
        name = file.name.lower()
        if name.endswith(_SHARD_SUFFIXES):
            raise SourceError(f"{file}: a shard of MDS; give the folder that its index.json is in")
        kind = next((kind for kind, suffixes in _KINDS.items() if name.endswith(suffixes)), _FILES)
        yield str(file), kind, {}


def _read_index(file: InputFile) -> Mapping[str, Any]:
    """The JSON object in a file, or an empty one: files of any content may be called so."""
    with opened(file) as stream:
        try:
            index = json.loads(stream.read())
        except ValueError:
            return {}
    return index if isinstance(index, dict) else {}


def _npy(files: Sequence[InputFile]) -> NpySource:
    columns: dict[str, InputFile] = {}
    for file in files:
        name = file.name[: -len(".npy")]
        if name in columns:
            raise SourceError(f"{file}: the column {name!r} is {columns[name]} already; each .npy file is a column")
        columns[name] = file
    return NpySource(columns)


def _named_columns(inputs: Mapping[str, str | os.PathLike[str]]) -> NpySource:
    columns = {}
    for name, given in inputs.items():
        files = [file for found in find_inputs([os.fspath(given)]) for file in found.files]
        if len(files) != 1 or not files[0].name.lower().endswith(NPY_SUFFIXES):
            raise SourceError(
                f"{os.fspath(given)}: the column {name!r} is one .npy file, found {', '.join(map(str, files[:3]))}"
            )
        columns[name] = files[0]
    if not columns:
        raise SourceError("no columns: give a .npy file for each name")
    return NpySource(columns)


def _common_root(roots: Sequence[str]) -> str:
    """The deepest folder that all files lie in, of those that were named."""
    schemes = {root.partition("://")[0] if "://" in root else "" for root in roots}
    if len(schemes) > 1:
        raise SourceError(f"{roots[0]} and {roots[-1]}: files of one dataset are all local, or all in one store")
    scheme = schemes.pop()
    if not scheme:
        return os.path.commonpath(roots)
    return f"{scheme}://" + os.path.commonpath([root.partition("://")[2] for root in roots])
