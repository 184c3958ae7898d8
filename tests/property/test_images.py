"""Any bytes are an image or an `ImageUnreadable`, never another error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loader.errors import ImageUnreadable
from loader.images import ImageColumn, Pixels

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def encoded(mode: str, kind: str, **options: bool) -> bytes:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3) % 251
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(out, kind, **options)
    return out.getvalue()


IMAGES = [
    encoded("RGB", "JPEG"),
    encoded("RGB", "JPEG", progressive=True),
    encoded("CMYK", "JPEG"),
    encoded("RGB", "PNG"),
    encoded("P", "PNG"),
    encoded("LA", "PNG"),
]
places = st.one_of(st.integers(0, 60), st.integers(0, 2000))


@given(
    source=st.sampled_from(IMAGES),
    changes=st.lists(st.tuples(places, st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), places),
    text=st.sampled_from(["uint8[3,*,*]", "uint8[1,8,9]", "uint8[4,40,1]"]),
)
def test_hostile_images_give_only_one_error(source: bytes, changes: list[tuple[int, int]], cut: int | None, text: str) -> None:
    data = bytearray(source)
    for place, value in changes:
        data[place % len(data)] = value
    pixels = Pixels.parse(text)
    try:
        found = ImageColumn(pixels, name="photo").pixels(bytes(data[:cut]), dataset="set", row=3)
    except ImageUnreadable as error:
        assert error.row == 3
    else:
        assert found.dtype == np.uint8
        assert found.shape[2] == pixels.channels
        assert pixels.size in (None, found.shape[:2])
