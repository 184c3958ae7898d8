"""Images decoded on request: their pixels, their shapes, and one error for whatever is no image."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from loader.errors import ColumnError, ImageUnreadable, InvalidOption
from loader.images import ImageColumn, Pixels
from tests.support.memory_store import URL, MemoryDataset, dataset_bytes

Uint8s = npt.NDArray[np.uint8]


def picture(height: int, width: int, *, seed: int = 0) -> Uint8s:
    """Smooth, so that JPEG keeps it."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 255 // height, columns * 255 // width, (rows + columns + seed * 40) * 255 // (height + width) % 256]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(pixels: Uint8s | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes, text: str) -> Uint8s:
    found = ImageColumn(Pixels.parse(text), name="photo").tensor(data, dataset=URL, row=5)
    assert found.dtype == torch.uint8
    return found.permute(1, 2, 0).numpy()


def distance(found: Uint8s, expected: Any) -> int:
    assert found.shape == np.asarray(expected).shape
    return int(np.abs(found.astype(int) - np.asarray(expected).astype(int)).max())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpeg_is_decoded_as_pillow_does(options: dict[str, Any]) -> None:
    data = encoded(picture(50, 70), "JPEG", quality=90, **options)
    assert distance(decoded(data, "uint8[3,*,*]"), Image.open(io.BytesIO(data))) <= 2
    assert distance(decoded(data, "uint8[1,*,*]")[..., 0], Image.open(io.BytesIO(data)).convert("L")) <= 2
    assert (decoded(data, "uint8[4,*,*]")[..., 3] == 255).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colours_is_decoded_to_rgb(mode: str) -> None:
    image = Image.fromarray(picture(16, 24)).convert(mode)
    data = encoded(image, "JPEG", quality=95)
    assert distance(decoded(data, "uint8[3,*,*]"), Image.open(io.BytesIO(data)).convert("RGB")) <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_mode_is_decoded_exactly(mode: str) -> None:
    image = Image.fromarray(picture(9, 11)).convert(mode)
    for channels, wanted in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        found = decoded(encoded(image), f"uint8[{channels},*,*]")
        assert np.array_equal(found, np.asarray(image.convert(wanted)).reshape(9, 11, channels))


def test_opacity_of_palette_colours_is_kept() -> None:
    image = Image.fromarray(picture(4, 4)).convert("P")
    data = encoded(image, transparency=bytes([7] * 256))
    assert (decoded(data, "uint8[4,*,*]")[..., 3] == 7).all()
    assert np.array_equal(decoded(data, "uint8[3,*,*]"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (90, 50), (20, 30), (31, 1), (1, 40)])
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)])
def test_middle_of_the_image_is_scaled_to_the_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = Image.fromarray(picture(*shape))
    scale = max(size[0] / shape[0], size[1] / shape[1])
    height, width = size[0] / scale, size[1] / scale
    top, left = (shape[0] - height) / 2, (shape[1] - width) / 2
    expected = image.resize(size[::-1], Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    found = decoded(encoded(image), f"uint8[3,{size[0]},{size[1]}]")
    # The cut has whole pixels, so it may be one off, and a pixel of these pictures is up to 255 / 20 levels from the next.
    assert distance(found, expected) <= max(8, 2 * 255 // min(height, width))


def test_image_of_the_right_size_keeps_its_pixels() -> None:
    assert np.array_equal(decoded(encoded(picture(32, 48)), "uint8[3,32,48]"), picture(32, 48))


def test_junk_between_the_parts_of_a_jpeg_is_passed_over() -> None:
    data = encoded(picture(40, 40), "JPEG")
    assert distance(decoded(data[:-2] + b"\0\0\0" + data[-2:], "uint8[3,*,*]"), decoded(data, "uint8[3,*,*]")) == 0


def large_png() -> bytes:
    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 13_000, 13_500, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


JPEG, PNG = encoded(picture(64, 64), "JPEG"), encoded(picture(64, 64))


BROKEN = {
    "empty": (b"", "they begin as neither"),
    "another format": (b"GIF89a" + bytes(100), "they begin as neither"),
    "a JPEG's first bytes": (JPEG[:4], "they begin as neither"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "(?i)truncated"),
    "most of a JPEG": (JPEG[:-40], "truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "damaged PNG": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "."),
    "too large": (large_png(), "13500 x 13000 pixels, more than 536870912 bytes"),
    "16 bits": (encoded(Image.fromarray(np.zeros((4, 4), np.uint16))), "mode I;16, expected at most 8 bits"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("data", "why"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_gets_one_error_with_its_place(data: bytes, why: str) -> None:
    with pytest.raises(ImageUnreadable, match=why) as raised:
        decoded(data, "uint8[4,*,*]")
    prefix = f"{URL}, row 5, column 'photo': expected a JPEG or PNG image, found {len(data)} bytes: "
    assert raised.value.message.startswith(prefix)
    assert (raised.value.dataset, raised.value.row, raised.value.column) == (URL, 5, "photo")


@pytest.mark.parametrize(
    "text", ["float32[3,8,8]", "uint8[2,8,8]", "uint8[3,8]", "uint8[3,*,8]", "uint8[3,0,8]", "RGB", 3, True]
)
def test_unknown_request_says_what_there_is(text: Any) -> None:
    with pytest.raises(InvalidOption, match=r"expected 'uint8\[3,HEIGHT,WIDTH\]'"):
        MemoryDataset(CONTENT, decode={"photo": text})


# In a dataset

ROWS = 30
SIZES = [(20 + row % 3, 16 + row % 5) for row in range(ROWS)]
PHOTOS = [encoded(picture(*size, seed=row), "JPEG") for row, size in enumerate(SIZES)]
ICONS = [encoded(picture(8, 8, seed=row)) for row in range(ROWS)]
COLUMNS = {"row": "int64", "photo": "jpeg", "icon": "png", "raw": "bytes"}
CONTENT = dataset_bytes(COLUMNS, {"row": np.arange(ROWS), "photo": PHOTOS, "icon": ICONS, "raw": PHOTOS}, block_size_bytes=4096)


def dataset(**options: Any) -> MemoryDataset:
    return MemoryDataset(CONTENT, **{"batch_size": 9, "shuffle": True, "num_threads": 2, **options})


def test_images_stay_bytes_unless_asked_for() -> None:
    for batch in dataset(decode={"icon": "uint8[3,8,8]"}):
        assert batch["photo"] == [PHOTOS[row] for row in batch["row"].tolist()]


def test_images_of_one_size_are_one_tensor() -> None:
    for batch in dataset(decode={"icon": "uint8[3,8,8]", "raw": "uint8[1,12,10]"}):
        assert batch["icon"].shape == (len(batch["row"]), 3, 8, 8)
        assert batch["icon"].is_contiguous(memory_format=torch.channels_last)
        assert batch["raw"].shape == (len(batch["row"]), 1, 12, 10)
        for row, icon in zip(batch["row"].tolist(), batch["icon"], strict=True):
            assert np.array_equal(icon.permute(1, 2, 0).numpy(), picture(8, 8, seed=row))


@pytest.mark.parametrize("options", [{}, {"yield_samples": True}, {"batch_size": None}])
def test_images_of_all_sizes_come_row_by_row(options: dict[str, Any]) -> None:
    source, seen = dataset(decode=True, **options), []
    for item in source:
        single = not isinstance(item["photo"], list)
        rows, photos = (item["row"].reshape(-1).tolist(), [item["photo"]] if single else item["photo"])
        for row, photo in zip(rows, photos, strict=True):
            assert photo.shape == (3, *SIZES[row])
            assert torch.equal(photo, source[row]["photo"])
        assert isinstance(item["raw"], bytes | list)
        seen += rows
    assert sorted(seen) == list(range(ROWS))


def test_transform_gets_decoded_images() -> None:
    shapes = list(dataset(decode={"icon": "uint8[3,4,4]"}, transform=lambda batch: batch["icon"].shape[1:]))
    assert shapes == [(3, 4, 4)] * 4


@pytest.mark.parametrize("options", [{}, {"batch_size": None}])
def test_broken_image_is_named_by_its_row_and_the_rest_can_be_had(options: dict[str, Any]) -> None:
    photos = [*PHOTOS[:17], PHOTOS[17][:200], *PHOTOS[18:]]
    content = dataset_bytes({"row": "int64", "photo": "jpeg"}, {"row": np.arange(ROWS), "photo": photos})
    source = MemoryDataset(content, **{"batch_size": 5, "decode": True, "num_threads": 2, **options})
    with pytest.raises(ImageUnreadable, match=f"{URL}, row 17, column 'photo'"):
        list(source)
    with pytest.raises(ImageUnreadable, match="row 17"):
        source[17]
    assert source[16]["photo"].shape == (3, *SIZES[16])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": {"row": "uint8[3,8,8]"}}, "'row': expected a column of jpeg, png or bytes .*photo, icon, raw, found int64"),
        ({"decode": {"face": "uint8[3,8,8]"}}, "'face': .*found no such column"),
        ({"decode": {"photo": "uint8[3,8,8]"}, "columns": ["row"]}, "'photo': .*there is none, found no such column"),
    ],
)
def test_columns_that_hold_no_images_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        list(dataset(**options))
