"""Generate a folder of JPEGs whose spectra resemble those of photographs: 320 x 240 pixels, about 20 kB each."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, CANVAS, CANVASES = 320, 240, 1024, 4
# the amplitudes of photographs fall about like this power of the frequency
POWER = 1.15
CHUNK = 500


def generate(folder: Path, count: int, classes: int, seed: int = 0) -> None:
    """Write `count` images to `folder/<class>/`; the same arguments give the same files."""
    for label in range(classes):
        (folder / f"{label:03d}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        write = partial(_write, folder, count, classes, seed)
        for _ in pool.map(write, range(0, count, CHUNK)):
            pass


def _write(folder: Path, count: int, classes: int, seed: int, first: int) -> None:
    numbers = range(first, min(first + CHUNK, count))
    if (folder / f"{numbers[-1] % classes:03d}" / f"{numbers[-1]:06d}.jpg").exists():
        return  # by an earlier call
    canvases = _canvases(seed)
    random = np.random.default_rng([seed, first])
    for number in numbers:
        light, colour = (_cut(canvases[random.integers(CANVASES)], random) for _ in range(2))
        channels = [128 + 50 * light + share * colour for share in (20, 0, -20)]
        image = Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number % classes:03d}" / f"{number:06d}.jpg", quality=80)


def _cut(canvas: np.ndarray, random: np.random.Generator) -> np.ndarray:
    top, left = random.integers(CANVAS - HEIGHT), random.integers(CANVAS - WIDTH)
    return canvas[top : top + HEIGHT, left : left + WIDTH]


def _canvases(seed: int) -> list[np.ndarray]:
    """Return large images of noise, from which the photographs are cut."""
    random = np.random.default_rng(seed)
    axis = np.fft.fftfreq(CANVAS)
    frequency = np.hypot(axis[:, None], axis)
    frequency[0, 0] = np.inf
    noise = [random.standard_normal((CANVAS, CANVAS)) for _ in range(CANVASES)]
    waves = [np.fft.ifft2(np.fft.fft2(values) / frequency**POWER).real for values in noise]
    return [(values / values.std()).astype(np.float32) for values in waves]
