"""Every failure that the loader itself can report, named for what went wrong.

The root is `LoaderError`, apart from the store's `StoreError`: a store error says that bytes could not be had, a loader error
says that they are not what a dataset should be, or that the caller asked for something that cannot be. A message says what
was asked, what was found and what would be right. Every class can be rebuilt from its message alone, because worker
processes of a DataLoader raise again in the main process with nothing but that; the named attributes are then ``None``.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "BlockCorrupt",
    "BuildUnresumable",
    "ColumnError",
    "DatasetNotFound",
    "FormatUnsupported",
    "ImageUnreadable",
    "IndexCorrupt",
    "IndexMissing",
    "InvalidOption",
    "IteratorStopped",
    "LanesNotAgreed",
    "LoaderError",
    "StateInvalid",
    "StateMismatch",
    "StateUnavailable",
    "TensorMismatch",
    "TensorsCorrupt",
    "WriterClosed",
]


class LoaderError(Exception):
    """Root of all errors of the loader."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ColumnError(LoaderError):
    """A column, or one of its values, is not what the schema says.

    Attributes
    ----------
    column : str or None
        The column's name.
    expected, found : str or None
        What would be right and what was there, type and shape included.
    """

    def __init__(
        self, message: str, *, column: str | None = None, expected: str | None = None, found: str | None = None
    ) -> None:
        super().__init__(message)
        self.column = column
        self.expected = expected
        self.found = found

    @classmethod
    def mismatch(cls, column: str, *, expected: str, found: str) -> Self:
        """The error of `column`, where `expected` would be right and `found` was there."""
        return cls(f"column {column!r}: expected {expected}, found {found}", column=column, expected=expected, found=found)


class DatasetNotFound(LoaderError):
    """Nothing has this name."""


class IndexMissing(LoaderError):
    """The object exists but is no Forebay dataset: it doesn't end with a dataset's footer."""


class IndexCorrupt(LoaderError):
    """The footer, the index or a block table is damaged or contradicts itself."""


class FormatUnsupported(LoaderError):
    """A newer version wrote this. The message says which one is needed."""


class BlockCorrupt(LoaderError):
    """The bytes of a column block are not those that the writer stored. The message says where they lie."""


class ImageUnreadable(LoaderError):
    """The bytes of a row are not the image that they should be decoded to.

    Attributes
    ----------
    dataset : str or None
        Its URL.
    row : int or None
        The row's number in it.
    column : str or None
        The column's name.
    """

    def __init__(self, message: str, *, dataset: str | None = None, row: int | None = None, column: str | None = None) -> None:
        super().__init__(message)
        self.dataset = dataset
        self.row = row
        self.column = column

    @classmethod
    def of(cls, dataset: str, *, row: int, column: str, size_bytes: int, why: str) -> Self:
        """The error of a row, of which `size_bytes` were there, and `why` they are no image."""
        message = f"{dataset}, row {row}, column {column!r}: expected a JPEG or PNG image, found {size_bytes} bytes: {why}"
        return cls(message, dataset=dataset, row=row, column=column)


class BuildUnresumable(LoaderError):
    """A build can't go on from what an earlier one has left: that is damaged, or the input was read differently."""


class InvalidOption(LoaderError):
    """An argument is out of range or contradicts another. Raised before anything was read or written."""


class StateInvalid(LoaderError):
    """What was given as a state is none: a field is missing, unknown, or of the wrong type."""


class StateMismatch(LoaderError):
    """A state belongs to another stream than the one that it is loaded into.

    Attributes
    ----------
    field : str or None
        What differs.
    saved, current : object
        Its value in the state, and in the loader that should take the state up.
    """

    def __init__(self, message: str, *, field: str | None = None, saved: object = None, current: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.saved = saved
        self.current = current


class StateUnavailable(LoaderError):
    """A state was asked of a process that cannot know it: worker processes are iterating."""


class IteratorStopped(LoaderError):
    """Another iterator of the same dataset goes on from where this one was, or the dataset was closed."""


class LanesNotAgreed(LoaderError):
    """The ranks of a run could not agree which lanes each of them reads; the message says who is missing."""


class TensorMismatch(LoaderError):
    """Names, shapes or dtypes that were asked for are not those of the object. The message lists all of them."""


class TensorsCorrupt(LoaderError):
    """The object is no safetensors file, or one that is cut short or contradicts itself."""


class WriterClosed(LoaderError):
    """The writer has been closed, or has failed; nothing more can be written with it."""
