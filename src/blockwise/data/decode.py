"""Samples -> pixels: every image is opened once, before training, so that a broken one is named in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blockwise.data.samples import Sample

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_all(
    samples: Sequence[Sample], size: int, interpolation: str, report: Callable[[], None]
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode samples into squares.

    Args:
        samples: What to decode.
        size: Side of the squares in pixels.
        interpolation: A key of `INTERPOLATIONS`.
        report: Called once an image.

    Returns:
        Pixels, uint8, shape (len(samples), 3, size, size), and the reason for each one that could not be read.
    """
    pixels = np.zeros((len(samples), 3, size, size), np.uint8)
    broken: dict[int, str] = {}

    def decode_into(index: int) -> None:
        try:
            pixels[index] = decode(samples[index].image, size, interpolation)
        except Exception as error:  # whatever a damaged file makes a decoder raise
            broken[index] = str(error) or type(error).__name__
        report()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode_into, range(len(samples))):
            pass
    return pixels, broken


def decode(image: Path | np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Return one image as RGB, its centre square scaled to `size`: uint8, shape (3, size, size)."""
    with Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image) as opened:
        square = ImageOps.fit(to_rgb(opened), (size, size), INTERPOLATIONS[interpolation])
    return np.asarray(square).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB."""
    if image.mode in ("I", "F"):  # nothing tells what is white
        raise ValueError(f"mode {image.mode}: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):  # Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparency
        image = image.convert("RGBA")
    return image.convert("RGB")
