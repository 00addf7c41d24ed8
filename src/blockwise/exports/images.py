"""Find and read the images that an export is used on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from blockwise.backbone.makers.base import ImageSpec
from blockwise.data.datamodule import normalise
from blockwise.data.decode import decode_all
from blockwise.data.samples import IMAGE_SUFFIXES, Sample, images_in
from blockwise.errors import InputError


def find_images(places: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """Yield files as they are given, one or several, and all images in folders, in alphabetical order.

    Raises:
        InputError: A file does not exist, or a folder has no images.
    """
    given = [places] if isinstance(places, (str, Path)) else list(places)
    if not given:
        raise InputError("there are no images: give files, or folders of images")
    for place in given:
        if not isinstance(place, (str, Path)):
            raise InputError(f"{type(place).__name__} is not a file: give files, or folders of images")
        path = Path(place).expanduser()
        if path.is_dir():
            inside = sorted(images_in(path))
            if not inside:
                raise InputError(f"{path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from inside
        elif path.exists() or path.is_symlink():
            yield path
        else:
            raise InputError(f"{path} does not exist")


def read_images(
    paths: Sequence[Path], spec: ImageSpec, report: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[int, str]]:
    """Return normalised images, shape (images, 3, size, size), and why those that cannot be read cannot, by index."""
    return read_samples([Sample(str(path), 0, path) for path in paths], spec, report)


def read_samples(
    samples: Sequence[Sample], spec: ImageSpec, report: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[int, str]]:
    """Return the same for samples of a data set."""
    pixels, broken = decode_all(samples, spec.resized, spec.interpolation, report)
    centre = center_crop(torch.from_numpy(pixels), [spec.size, spec.size])
    return normalise(centre, spec), broken
