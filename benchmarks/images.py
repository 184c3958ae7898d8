"""Decoders of JPEG, alone and with scaling to 224 x 224, in one run: ``make bench SUITE=images``.

The pictures are noise with the spectrum of photographs and a few discs with sharp borders, so that their files are as large as
those of photographs. One thread; what matters for several is that all of these run without the GIL.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from benchmarks.measure import Cell, Result, measure, report
from loader.images import ImageColumn, Pixels
from loader.torch_threads import use_one_torch_thread

PICTURES = 16
SETS = {"256 x 256": (256, 256, 90), "375 x 500": (375, 500, 90), "500 x 500": (500, 500, 95)}


def photograph(height: int, width: int, *, quality: int, rng: np.random.Generator) -> bytes:
    """A JPEG."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    spectrum = np.maximum(frequency, 1 / max(height, width)) ** -1.4
    planes: list[npt.NDArray[np.float64]] = []
    for share in (0.0, 0.35, 0.35, 0.35):
        phases = np.exp(2j * np.pi * rng.random(spectrum.shape))
        plane = np.fft.irfft2(spectrum * phases, (height, width)) + share * (planes[0] if planes else 0)
        planes.append((plane - plane.mean()) / plane.std())
    pixels = 128 + 55 * np.stack([(planes[0] + 0.35 * plane) / 1.35 for plane in planes[1:]], axis=-1)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):
        row, column, radius = rng.integers(0, height), rng.integers(0, width), rng.integers(20, height // 3)
        pixels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] += rng.normal(0, 40, 3)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def by_pillow(data: bytes) -> object:
    """Decoded only."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def by_simplejpeg(data: bytes) -> object:
    """Decoded only."""
    return simplejpeg.decode_jpeg(data, "RGB")


def scaled_by_pillow(data: bytes) -> object:
    """Decoded, cut and scaled."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image.resize((224, 224), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def by_loader(text: str) -> Callable[[bytes], object]:
    """As the loader's threads do it."""
    column = ImageColumn(Pixels.parse(text), name="photo")
    return lambda data: column.pixels(data, dataset="bench", row=0)


def every(decode: Callable[[bytes], object], pictures: list[bytes]) -> Callable[[], None]:
    """Decodes all pictures."""

    def run() -> None:
        for data in pictures:
            decode(data)

    return run


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--min-s", type=float, default=0.3, help="seconds of each side in each round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/images.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    results: list[Result] = []
    use_one_torch_thread()
    for name, (height, width, quality) in SETS.items():
        pictures = [photograph(height, width, quality=quality, rng=rng) for _ in range(PICTURES)]
        size = f"{name}, {sum(map(len, pictures)) // PICTURES // 1000} kB"
        cells = {
            f"{size}, decoded": {"Pillow": by_pillow, "simplejpeg": by_simplejpeg, "Forebay": by_loader("uint8[3,*,*]")},
            f"{size}, to 224 x 224": {"Pillow": scaled_by_pillow, "Forebay": by_loader("uint8[3,224,224]")},
        }
        for cell_name, decoders in cells.items():
            sides = {side: every(decode, pictures) for side, decode in decoders.items()}
            cell = Cell(name=cell_name, unit="images", amount=PICTURES, sides=sides)
            results += measure(cell, rounds=arguments.rounds, min_s=arguments.min_s)
    report(results, title="images, one thread", facts={}, path=arguments.out)


if __name__ == "__main__":
    main()
