"""What a dataset can be built from: Parquet files, JSON lines, and folders of files.

Inputs are paths, folders and glob patterns. They are taken in the order given, a folder or a pattern in the order of its paths.
Parquet files (.parquet, .pq) and JSON lines (.jsonl, .ndjson, also .gz and .zst) have many rows; any other file is a row.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from loader.columns import parse_column_type
from loader.errors import InvalidOption
from loader.source_files import FilesSource
from loader.source_jsonl import JSONL_SUFFIXES, JsonLinesSource
from loader.source_parquet import PARQUET_SUFFIXES, ParquetSource
from loader.source_rows import Source, SourceError

__all__ = ["Source", "SourceError", "open_source", "parse_columns"]

Kind = Literal["Parquet", "JSON lines", "files"]


def open_source(inputs: Sequence[str | os.PathLike[str]]) -> Source:
    """The rows of `inputs`: paths of files and folders, and glob patterns.

    Raises
    ------
    SourceError
        If an input doesn't exist, is given twice, or is of another kind than those before.
    """
    try:
        files, root = _find([os.fspath(given) for given in inputs])
        kinds = {file: _kind(file) for file in files}
        for file, kind in kinds.items():
            if kind != kinds[files[0]]:
                raise SourceError(
                    f"{file} ({kind}) is of another kind than {files[0]} ({kinds[files[0]]}); a dataset is built from one "
                    "kind, so choose with a pattern such as 'folder/*.parquet'"
                )
        match kinds[files[0]]:
            case "Parquet":
                return ParquetSource(files)
            case "JSON lines":
                return JsonLinesSource(files)
            case _:
                return FilesSource(files, root=root)
    except OSError as exc:
        raise SourceError(f"the input can't be read: {exc}") from exc


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


def _find(inputs: Sequence[str]) -> tuple[list[Path], Path]:
    """All files of `inputs` in order, and the deepest folder that they all lie in, of those that were named."""
    files: dict[Path, None] = {}
    folders = []
    for path in (path for given in inputs for path in _expand(given)):
        folders.append(path if path.is_dir() else path.parent)
        for file in _walk(path) if path.is_dir() else [path]:
            if file in files:
                raise SourceError(f"{file}: given twice; each row is taken once, so name each file once")
            files[file] = None
    if not files:
        raise SourceError(f"{', '.join(inputs) or 'no input'}: no files there")
    return list(files), Path(os.path.commonpath(folders))


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.exists():
        return [path]
    matches = [Path(match) for match in glob.glob(given, recursive=True)]
    if not matches:
        raise SourceError(f"{given}: no such file or folder, and no file matches it as a pattern")
    return sorted(matches, key=lambda match: match.parts)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below `folder`, sorted by path, part by part; names that begin with a dot are left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _kind(file: Path) -> Kind:
    if not file.is_file():
        raise SourceError(f"{file}: not a file that can be read as one")
    name = file.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return "Parquet"
    return "JSON lines" if name.endswith(JSONL_SUFFIXES) else "files"
