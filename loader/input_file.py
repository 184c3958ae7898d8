"""The files of an input: local paths, and the URLs of whatever fsspec reads (s3://, gs://, https://, ...).

`find_inputs` turns what a user names into files; a file opens itself anew in whichever thread or process reads it. Local files
never pass through fsspec, which is imported for the first URL. Files whose names end in .gz, .zst or .zstd are decompressed as
they are read, and one that was cut short is an error, never a shorter file.

What fsspec's file systems raise is anything; `reading` makes a `SourceError` of it that names the file.
"""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

from loader.source_rows import SourceError

__all__ = ["Found", "InputFile", "InputStream", "below", "file_system", "find_inputs", "opened", "reading", "streamed"]

PACKED: Final = ("", ".gz", ".zst", ".zstd")
"""What the name of a file that is decompressed on the way may end in besides its own suffix."""
_DECODING_ERRORS: Final = (OSError, EOFError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file.

    Attributes
    ----------
    path : str
        A local path, or a URL.
    size_bytes : int
        Size as it lies there.
    stamp : str
        Changes when the file is replaced: its time, or its ETag.
    """

    path: str
    size_bytes: int
    stamp: str = ""

    @classmethod
    def local(cls, path: str | os.PathLike[str]) -> InputFile:
        """The file at a local path; raises `OSError` if there is none."""
        status = os.stat(path)
        return cls(path=os.fspath(path), size_bytes=status.st_size, stamp=str(status.st_mtime_ns))

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's own file system."""
        return "://" not in self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return self.path

    def open(self) -> BinaryIO:
        """Its bytes, seekable."""
        if self.is_local:
            return open(self.path, "rb")
        fs, path = file_system(self.path)
        return cast(BinaryIO, fs.open(path, "rb"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one of the inputs turned out to be.

    Attributes
    ----------
    root : str
        The folder that was named, or that the file lies in; empty for the current one.
    files : tuple of InputFile
        In order.
    is_folder : bool
        Whether a folder was named.
    """

    root: str
    files: tuple[InputFile, ...]
    is_folder: bool

    def by_name(self) -> dict[str, InputFile]:
        """The files by their paths below the root."""
        return {below(self.root, file): file for file in self.files}


def below(root: str, file: InputFile) -> str:
    """The path of `file`, which lies in the folder `root`, as seen from there."""
    return file.path[len(root) :].lstrip("/")


@contextmanager
def reading(file: InputFile | str, *, what: str = "") -> Iterator[None]:
    """Errors of reading `file` become a `SourceError`; `what` says as what it was read, such as `` as Parquet``."""
    try:
        yield
    except _DECODING_ERRORS as exc:
        raise SourceError(f"{file}: can't be read{what}: {exc}") from exc
    except (ImportError, RuntimeError, ValueError) as exc:
        # Of fsspec: a file system that isn't installed, or its own errors. Local code has no reason to raise them.
        if "://" not in str(file):
            raise
        raise SourceError(f"{file}: can't be read{what}: {exc}") from exc


@contextmanager
def opened(file: InputFile, *, what: str = "") -> Iterator[BinaryIO]:
    """The open file; errors as `reading` translates them."""
    with reading(file, what=what), file.open() as stream:
        yield stream


class InputStream:
    """The decompressed bytes of a file, from its start to its end; also a file object for reading, as pyarrow takes one.

    Attributes
    ----------
    name : str
        The file.
    """

    def __init__(self, raw: BinaryIO, *, name: str) -> None:
        self.name = name
        self.closed = False
        self._raw = raw
        self._buffer = bytearray()
        self._blocks = self.blocks(1 << 20)

    @property
    def done_bytes(self) -> int:
        """How much of the file, as it lies there, has been read."""
        return self._raw.tell()

    def blocks(self, read_bytes: int) -> Iterator[bytes]:
        """All of it, in blocks."""
        if self.name.endswith((".zst", ".zstd")):
            yield from _zstd_blocks(self._raw, read_bytes=read_bytes)
            return
        is_gzip = self.name.endswith((".gz", ".tgz"))
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if is_gzip else self._raw
        while block := stream.read(read_bytes):
            yield block

    def read(self, size_bytes: int) -> bytes:
        """The next bytes; fewer only at the end."""
        data = self.peek(size_bytes)
        del self._buffer[:size_bytes]
        return data

    def peek(self, size_bytes: int) -> bytes:
        """What `read` would give, without taking it."""
        while len(self._buffer) < size_bytes:
            block = next(self._blocks, None)
            if block is None:
                break
            self._buffer += block
        # One copy, and not one of the slice as well.
        with memoryview(self._buffer) as view:
            return bytes(view[:size_bytes])

    def close(self) -> None:
        """Take no more; the file itself is closed by who opened it."""
        self.closed = True


@contextmanager
def streamed(file: InputFile) -> Iterator[InputStream]:
    """The file as a stream of decompressed bytes."""
    with opened(file) as raw:
        yield InputStream(raw, name=file.name.lower())


def find_inputs(inputs: Sequence[str]) -> list[Found]:
    """All files of paths, folders, patterns and URLs, in the order given, below a folder or pattern in that of their paths.

    Raises
    ------
    SourceError
        If one doesn't exist, or a file is given twice.
    """
    found, seen = [], set[str]()
    for given in inputs:
        with reading(given):
            parts = _find_remote(given) if "://" in given else _find_local(given)
        for part in parts:
            for file in part.files:
                if file.path in seen:
                    raise SourceError(f"{file}: given twice; each row is taken once, so name each file once")
                seen.add(file.path)
        found.extend(parts)
    if not seen:
        raise SourceError(f"{', '.join(inputs) or 'no input'}: no files there")
    return found


def _find_local(given: str) -> list[Found]:
    paths = [Path(given)]
    if not paths[0].exists():
        paths = sorted(map(Path, glob.glob(given, recursive=True)), key=lambda match: match.parts)
        if not paths:
            raise SourceError(f"{given}: no such file or folder, and no file matches it as a pattern")
    return [_found_local(path) for path in paths]


def _found_local(path: Path) -> Found:
    if path.is_dir():
        return Found(root=_root(path), files=tuple(map(_local_file, _walk(path))), is_folder=True)
    return Found(root=_root(path.parent), files=(_local_file(path),), is_folder=False)


def _root(folder: Path) -> str:
    # What lies in the current folder has no "./" in front either.
    return "" if folder == Path() else str(folder)


def _local_file(path: Path) -> InputFile:
    if not path.is_file():
        raise SourceError(f"{path}: not a file that can be read as one")
    return InputFile.local(path)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below `folder`, sorted by path, part by part; names that begin with a dot are left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL is of, and the path in it; raises `SourceError` without fsspec."""
    try:
        import fsspec
    except ImportError as exc:
        raise SourceError(f"{url}: reading URLs needs fsspec; install it with: pip install 'forebay[loader]'") from exc
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def _find_remote(given: str) -> list[Found]:
    fs, path = file_system(given)
    matches = sorted(fs.glob(path), key=lambda match: match.split("/")) if glob.has_magic(path) else [path]
    found = []
    for match in matches:
        if fs.isdir(match):
            infos = fs.find(match, detail=True)
            names = sorted(infos, key=lambda name: name.split("/"))
            root = match.rstrip("/")
            shown = [name for name in names if not any(part.startswith(".") for part in name[len(root) :].split("/"))]
            files = tuple(_remote_file(fs, name, infos[name]) for name in shown)
            found.append(Found(root=fs.unstrip_protocol(root), files=files, is_folder=True))
        elif fs.exists(match):
            file = _remote_file(fs, match, fs.info(match))
            found.append(Found(root=file.path.rpartition("/")[0], files=(file,), is_folder=False))
    if not found:
        raise SourceError(f"{given}: no such file or folder, and no file matches it as a pattern")
    return found


def _remote_file(fs: Any, path: str, info: dict[str, Any]) -> InputFile:
    stamp = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), "")
    return InputFile(path=fs.unstrip_protocol(path), size_bytes=int(info["size"] or 0), stamp=stamp)


def _zstd_blocks(raw: BinaryIO, *, read_bytes: int) -> Iterator[bytes]:
    # zstandard's stream_reader takes a file that was cut short for one that ends there.
    frame = None
    while block := raw.read(read_bytes):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(block)
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends in the middle of a zstd frame")
