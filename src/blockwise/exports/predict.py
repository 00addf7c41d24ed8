"""Predict the classes of images with an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blockwise.backbone.makers.base import ImageSpec
from blockwise.data.datamodule import normalise
from blockwise.data.decode import decode_all
from blockwise.data.samples import IMAGE_SUFFIXES, Sample
from blockwise.errors import InputError
from blockwise.exports.folder import read_export
from blockwise.exports.load import load_network

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: The file.
        classes: The likeliest classes, the likeliest first.
        probabilities: Their probabilities, by softmax.
        error: Why the image cannot be read; then there are no classes.
    """

    image: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def predict(
    folder: str | Path,
    images: Sequence[str | Path],
    *,
    top: int = 1,
    overrides: Sequence[str] = (),
    begin: Callable[[int], Callable[[], None]] = lambda _total: lambda: None,
) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        folder: An export folder.
        images: Files and folders of images.
        top: Number of classes per image.
        overrides: Settings for the base weights of a delta, such as `model.checkpoint=<path>`.
        begin: Called with the number of images; returns a function that is called once per image.

    Returns:
        One prediction per image, in the order of the arguments; images that cannot be read have an `error`.

    Raises:
        InputError: The folder is no export, or there are no images.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"--top {top} must be an integer of at least 1")
    exported = read_export(folder)
    paths = list(find_images(images))
    network = load_network(exported, overrides)
    report = begin(len(paths))
    found: list[Prediction] = []
    for first in range(0, len(paths), BATCH):
        batch = paths[first : first + BATCH]
        pixels, broken = read_images(batch, exported.images, report)
        kept = [index for index in range(len(batch)) if index not in broken]
        predicted = {index: Prediction(batch[index], error=reason) for index, reason in broken.items()}
        if kept:
            with torch.no_grad():
                shares, order = network(pixels[kept]).softmax(1).sort(dim=1, descending=True, stable=True)
            for index, own, classes in zip(kept, shares.tolist(), order.tolist(), strict=True):
                names = tuple(exported.classes[number] for number in classes[:top])
                predicted[index] = Prediction(batch[index], names, tuple(own[:top]))
        found += [predicted[index] for index in range(len(batch))]
    return found


def find_images(places: Sequence[str | Path]) -> Iterator[Path]:
    """Yield files as they are given, and all images in folders, in alphabetical order.

    Raises:
        InputError: A file does not exist, or a folder has no images.
    """
    for place in map(Path, places):
        path = place.expanduser()
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not inside:
                raise InputError(f"{path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise InputError(f"{path} does not exist")


def read_images(
    paths: Sequence[Path], spec: ImageSpec, report: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[int, str]]:
    """Return normalised images, shape (images, 3, size, size), and why those that cannot be read cannot, by index."""
    samples = [Sample(str(path), 0, path) for path in paths]
    pixels, broken = decode_all(samples, round(spec.size / spec.crop_pct), spec.interpolation, report)
    return normalise(centre(pixels, spec.size), spec), broken


def centre(pixels: np.ndarray, size: int) -> Tensor:
    """Return the centre of square images, shape (images, 3, size, size)."""
    first = (pixels.shape[-1] - size) // 2
    return torch.from_numpy(pixels[..., first : first + size, first : first + size])
