"""Images as tensors, on request: what the bytes of a row become, and how.

A request is written as a type. ``uint8[3,224,224]`` is RGB of that height and width: the image is cut to that shape around its
middle and then scaled (bilinear, antialiased), so that a batch is one tensor. ``uint8[3,*,*]`` is RGB of the image's own size,
one tensor for each row. 1 instead of 3 is grey, 4 is RGB and opacity. JPEG and PNG are told apart by their bytes; the
orientation that EXIF data may ask for is not applied.

Tensors are [channels, height, width] over pixels whose channels lie together, which torch calls channels_last. What takes long
runs without the GIL. ADR 0021 says why which library does what.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from loader.buffers import BufferPool
from loader.column_type import MAX_VALUE_BYTES, ColumnType
from loader.errors import ColumnError, ImageUnreadable, InvalidOption
from loader.torch_threads import use_one_torch_thread

__all__ = ["Decode", "ImageBatch", "ImageColumn", "Pixels", "image_columns"]

Uint8s = npt.NDArray[np.uint8]
Data = bytes | memoryview
Decode = bool | Mapping[str, str]
"""What a user asks for: True is ``uint8[3,*,*]`` for every column of images."""

_PATTERN: Final = re.compile(r"uint8\[([134]),(?:\*,\*|([1-9][0-9]{0,4}),([1-9][0-9]{0,4}))\]")
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_COLORSPACES: Final = {1: "GRAY", 3: "RGB", 4: "RGBA"}
# Those of at most 8 bits a channel; the values of others would have to be scaled by a rule of somebody's.
_SOURCE_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_OWN_SIZE: Final = "uint8[3,*,*]"
_MAX_IDLE_BUFFERS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """What images are decoded to.

    Attributes
    ----------
    channels : int
        1 (grey), 3 (RGB) or 4 (RGBA).
    size : (height, width) or None
        None: the image's own.
    """

    channels: int
    size: tuple[int, int] | None

    @classmethod
    def parse(cls, text: object) -> Self:
        """What a text such as ``uint8[3,224,224]`` asks for; raises `InvalidOption`."""
        match = _PATTERN.fullmatch(text.replace(" ", "")) if isinstance(text, str) else None
        if match is None:
            raise InvalidOption(
                f"decode to {text!r}: expected 'uint8[3,HEIGHT,WIDTH]', or 'uint8[3,*,*]' for each image's own size; "
                "1 instead of 3 is grey, 4 RGBA"
            )
        return cls(channels=int(match[1]), size=(int(match[2]), int(match[3])) if match[2] else None)


class ImageColumn:
    """Decodes the images of a column. Thread-safe.

    Parameters
    ----------
    pixels : Pixels
        What images become.
    name : str
        The column's name, for errors.
    """

    def __init__(self, pixels: Pixels, *, name: str) -> None:
        self._pixels = pixels
        self._name = name
        shape = (*(pixels.size or (1, 1)), pixels.channels)
        self._pool = BufferPool(np.dtype(np.uint8), shape, max_idle=_MAX_IDLE_BUFFERS)

    def pixels(self, data: Data, *, dataset: str, row: int) -> Uint8s:
        """The image [height, width, channels] of row number `row` of a dataset.

        Raises
        ------
        ImageUnreadable
            If `data` are no image, or not a whole one.
        """
        try:
            pixels = _decode(data, self._pixels.channels)
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as exc:
            why = "they begin as neither" if isinstance(exc, UnidentifiedImageError) else str(exc)
            raise ImageUnreadable.of(dataset, row=row, column=self._name, size_bytes=len(data), why=why) from exc
        return pixels if self._pixels.size is None else _cover(pixels, self._pixels.size)

    def tensor(self, data: Data, *, dataset: str, row: int) -> torch.Tensor:
        """The image [channels, height, width]; raises `ImageUnreadable`."""
        return torch.from_numpy(self.pixels(data, dataset=dataset, row=row)).permute(2, 0, 1)

    def batch(self, values: Sequence[Data], rows: Sequence[tuple[str, int]]) -> ImageBatch:
        """The images of some rows, each named by dataset and number, to be decoded by several threads."""
        out = [None] * len(values) if self._pixels.size is None else self._pool.take(len(values))
        return ImageBatch(self, values, rows, out)


class ImageBatch:
    """The images of a batch; `decode` every place once, then take `tensors`."""

    def __init__(
        self, column: ImageColumn, values: Sequence[Data], rows: Sequence[tuple[str, int]], out: Uint8s | list[Any]
    ) -> None:
        self._column = column
        self._values = values
        self._rows = rows
        self._out = out

    def decode(self, start: int, end: int) -> None:
        """Decode the images ``[start, end)``; raises `ImageUnreadable`."""
        use_one_torch_thread()
        for place in range(start, min(end, len(self._values))):
            dataset, row = self._rows[place]
            self._out[place] = self._column.pixels(self._values[place], dataset=dataset, row=row)

    def tensors(self) -> torch.Tensor | list[torch.Tensor]:
        """One tensor [rows, channels, height, width], or one for each row if each has its own size."""
        if isinstance(self._out, list):
            return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in self._out]
        return torch.from_numpy(self._out).permute(0, 3, 1, 2)


def image_columns(decode: Decode, columns: Mapping[str, ColumnType]) -> dict[str, ImageColumn]:
    """What decodes the columns that `decode` asks for, of those that are read.

    Raises
    ------
    ColumnError
        If a column is not read, or can't hold images.
    """
    if decode is True:
        decode = {name: _OWN_SIZE for name, kind in columns.items() if kind.is_image}
    made = {}
    for name, text in (decode or {}).items():
        if name not in columns or columns[name].kind not in ("jpeg", "png", "bytes"):
            able = [other for other, kind in columns.items() if kind.kind in ("jpeg", "png", "bytes")]
            expected = f"a column of jpeg, png or bytes that is read: {', '.join(able) or 'there is none'}"
            found = str(columns[name]) if name in columns else "no such column"
            raise ColumnError.mismatch(name, expected=expected, found=f"{found} to be decoded")
        made[name] = ImageColumn(Pixels.parse(text), name=name)
    return made


def _decode(data: Data, channels: int) -> Uint8s:
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace in ("Gray", "YCbCr", "RGB"):
                _check_size(height, width, channels)
                decoded: Uint8s = simplejpeg.decode_jpeg(data, _COLORSPACES[channels])
                return decoded
        except ValueError:
            pass  # Pillow goes by what libjpeg can mend, and refuses an image that is cut off.
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        _check_size(image.height, image.width, channels)
        if image.mode not in _SOURCE_MODES:
            raise ValueError(f"pixels of mode {image.mode}, expected at most 8 bits a channel")
        # Opacity that belongs to colours of a palette must meet its pixels before it can be kept or left out.
        whole = image.convert("RGBA") if "transparency" in image.info else image
        # A copy, because torch wants memory that can be written to.
        return np.array(whole.convert(_MODES[channels])).reshape(image.height, image.width, channels)


def _check_size(height: int, width: int, channels: int) -> None:
    if height * width * channels > MAX_VALUE_BYTES:
        raise ValueError(f"{height} x {width} pixels, more than {MAX_VALUE_BYTES} bytes when decoded")


def _cover(pixels: Uint8s, size: tuple[int, int]) -> Uint8s:
    """The middle of an image, as large as its shape allows, scaled to `size`."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    cut_height = min(height, max(1, round(width * size[0] / size[1])))
    cut_width = min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    planes = torch.from_numpy(pixels[top : top + cut_height, left : left + cut_width]).permute(2, 0, 1)[np.newaxis]
    scaled = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    covered: Uint8s = scaled[0].permute(1, 2, 0).numpy()
    return covered
