"""Decode images to pixels, once and before training, so that broken files are reported early."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blockwise.data.samples import Sample, open_file
from blockwise.io.images import TURNS, open_image, orientation
from blockwise.io.names import printable

# images per task of a thread: few, so that Ctrl-C ends soon
CHUNK = 16
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_all(
    samples: Sequence[Sample], size: int, interpolation: str, report: Callable[[], None]
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode samples into square images, all in memory.

    Args:
        samples: The samples to decode.
        size: Side of the decoded images in pixels.
        interpolation: A key of `INTERPOLATIONS`.
        report: Called once per image.

    Returns:
        Pixels, uint8, shape (len(samples), 3, size, size), and the error of each image that cannot be read, by index.
    """
    pixels = np.zeros((len(samples), 3, size, size), np.uint8)
    broken: dict[int, str] = {}
    for chunk, reasons in decode_chunks(samples, range(len(samples)), size, interpolation, pixels.__setitem__):
        broken |= reasons
        for _ in chunk:
            report()
    return pixels, broken


def decode_chunks(
    samples: Sequence[Sample],
    indices: Sequence[int],
    size: int,
    interpolation: str,
    keep: Callable[[int, np.ndarray], None],
) -> Generator[tuple[Sequence[int], dict[int, str]], None, None]:
    """Decode some samples on all cores, and yield the indices of the next few that are done.

    Threads are as fast as processes here, since Pillow needs no lock of Python to decode and to resize.

    Args:
        samples: All samples.
        indices: The indices of those to decode.
        size: Side of the decoded images in pixels.
        interpolation: A key of `INTERPOLATIONS`.
        keep: Called with the index and the pixels of each image, from several threads; its errors are raised.

    Yields:
        Indices, and the errors of those that cannot be read.
    """

    def decode_chunk(chunk: Sequence[int]) -> tuple[Sequence[int], dict[int, str]]:
        broken: dict[int, str] = {}
        for index in chunk:
            try:
                pixels = decode(samples[index].image, size, interpolation)
            except Exception as error:  # damaged files make decoders raise errors of many types
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                broken[index] = printable(reason) or type(error).__name__
            else:
                keep(index, pixels)
        return chunk, broken

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(decode_chunk, (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)))


def decode(image: Path | Callable[[], bytes] | np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Return an image, upright and in RGB, cropped to its centre square and resized: uint8, shape (3, size, size)."""
    if isinstance(image, np.ndarray):
        square = _fit(to_rgb(Image.fromarray(image)), size, interpolation)
    else:
        with open_file(image) as file:
            turn = TURNS.get(orientation(file))
            file.seek(0)
            with open_image(file) as opened:
                upright = to_rgb(opened) if turn is None else to_rgb(opened).transpose(turn)
            square = _fit(upright, size, interpolation)
    return np.asarray(square).transpose(2, 0, 1)


def _fit(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    return ImageOps.fit(image, (size, size), INTERPOLATIONS[interpolation])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    Raises:
        ValueError: The image has 32-bit pixels, mode `I` or `F`.
    """
    if image.mode in ("I", "F"):  # the value of white is unknown
        raise ValueError(f"mode {image.mode}: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):  # Pillow would clip the values instead of scaling them
        # not divided: a few bytes can claim an image of 100 million pixels, and floats take four times the memory
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # a palette may contain transparency
        image = image.convert("RGBA")
    return image.convert("RGB")
