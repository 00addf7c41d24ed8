"""Random augmentation of training images: names, presets, and any torchvision v2 transform.

Every image draws from generators seeded with its own seed. So what it becomes depends neither on the process or worker
nor on the other images of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from blockwise.data.pixels.on_device import to_device
from blockwise.errors import InputError, did_you_mean, first_line
from blockwise.io.targets import instantiate

# a name, a mapping with `_target_`, or a transform
Element = Any
Transform = Callable[[Tensor], Any]
LIGHT = ("crop", "flip")
PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "light": LIGHT,
    "trivialaugment": (*LIGHT, "trivialaugment"),
    "randaugment": (*LIGHT, "randaugment"),
    "colour": (*LIGHT, "colour"),
}
# the transform of each name, for a side of the images; records keep the name alone, so other options need a new name
NAMED: dict[str, Callable[[int], Transform]] = {
    "crop": v2.RandomCrop,
    "flip": lambda _: v2.RandomHorizontalFlip(),
    "trivialaugment": lambda _: v2.TrivialAugmentWide(),
    "randaugment": lambda _: v2.RandAugment(),
    "colour": lambda _: v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
}
GREY = 128


def expand(augment: Element | Sequence[Element]) -> list[Element]:
    """Return the elements of a preset, of a single element, or of a list.

    >>> expand("light"), expand("none"), expand("flip"), expand(["crop"])
    (['crop', 'flip'], [], ['flip'], ['crop'])
    """
    if isinstance(augment, str):
        return list(PRESETS.get(augment, (augment,)))
    return list(augment) if isinstance(augment, (list, tuple)) else [augment]


class Augmentation:
    """Augments batches of uint8 images, and cuts out the centre of what is larger than the network's images.

    Args:
        elements: Names, mappings with `_target_`, and transforms, in the order in which they are applied.
        size: Side of the images for the network.
        side: Side of the decoded images.

    Raises:
        InputError: A name is unknown or given twice, a transform cannot be made, or it does not return an image.
    """

    def __init__(self, elements: Sequence[Element], size: int, side: int) -> None:
        self.size = size
        self._labels = [_label(element) for element in elements]
        self._transforms = [_make(element, size) for element in elements]
        self._centre = v2.CenterCrop(size)
        names = [element for element in elements if isinstance(element, str)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"data.augment lists {twice[0]} twice: each name is applied once")
        only_moves = len(names) == len(elements) and set(names) <= set(LIGHT)
        # an image smaller than its crop is padded, or refused, by torchvision
        self._moves = names if only_moves and side >= size else None
        if not only_moves:
            self._try(side)

    def __call__(self, pixels: Tensor, seeds: Sequence[int], places: Tensor | None = None) -> Tensor:
        """Return augmented images, uint8, shape (batch, 3, size, size).

        Args:
            pixels: Decoded images, uint8, shape (images, 3, side, side).
            seeds: One seed per image; none, to cut out the centre alone.
            places: Which of the images are in the batch; None takes all.

        Raises:
            InputError: A transform returns something that is no image.
        """
        if self._moves and seeds:
            return crop_and_flip(pixels, self.size, self._moves, seeds, places)
        pixels = pixels if places is None else pixels[places]
        if not seeds or not self._transforms:
            return self._centre(pixels)
        with _own_generators(pixels.device) as seed_all:
            images = []
            for image, seed in zip(pixels, seeds, strict=True):
                seed_all(seed)
                images.append(self._centre(self._transform(image)))
            return torch.stack(images)

    def _try(self, side: int) -> None:
        with _own_generators(torch.device("cpu")) as seed_all:
            seed_all(0)
            self._transform(torch.full((3, side, side), GREY, dtype=torch.uint8))

    def _transform(self, image: Tensor) -> Tensor:
        least = min(self.size, *image.shape[1:])
        value: Any = image
        wrong = ""
        for label, transform in zip(self._labels, self._transforms, strict=True):
            try:
                value = transform(value)
            except Exception as error:  # transforms raise whatever they like
                before = f"{wrong}, on which " if wrong else ""
                raise InputError(
                    f"data.augment: {before}{label} fails ({first_line(error.__cause__ or error)})"
                ) from error
            # a later transform may turn it into an image again
            wrong = "" if _is_image(value, least) else wrong or f"{label} returns {_form(value)}"
        if wrong:
            raise InputError(f"data.augment: {wrong}, but must return uint8 images of shape (3, {least}, {least})")
        return value


def crop_and_flip(
    pixels: Tensor, size: int, names: Sequence[str], seeds: Sequence[int], places: Tensor | None = None
) -> Tensor:
    """Return what v2.RandomCrop and v2.RandomHorizontalFlip make of each image under its seed, as one gather.

    Args:
        pixels: Images, shape (images, 3, side, side); side is at least `size`.
        size: Side of the crops.
        names: `crop` and `flip`, in the order in which they are applied, at most once each.
        seeds: One seed per image of the batch.
        places: Which of the images are in the batch; None takes all.

    Returns:
        The crops, shape (batch, 3, size, size); without `crop`, they are the centres.
    """
    generator = torch.Generator()
    draws = [_draw(generator.manual_seed(seed), pixels.shape[-1], size, names) for seed in seeds]
    if pixels.device.type == "cpu":
        return gather_rows(pixels if places is None else pixels[places], size, draws)
    return gather_pixels(pixels, size, draws, places)


def _draw(generator: torch.Generator, side: int, size: int, names: Sequence[str]) -> tuple[int, int, bool]:
    """Return top and left of a crop, and whether it is flipped; the numbers are drawn as torchvision draws them."""
    top = left = round((side - size) / 2)
    flipped = False
    for name in names:
        if name == "flip":
            flipped = bool(torch.rand(1, generator=generator) < 0.5)
        elif side > size:
            top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for _ in range(2))
    # if the whole image is flipped before it is cropped, the left of the crop was on the right
    return top, side - size - left if flipped and names[0] == "flip" else left, flipped


def gather_pixels(
    pixels: Tensor, size: int, draws: Sequence[tuple[int, int, bool]], places: Tensor | None = None
) -> Tensor:
    """Return crops, given top, left and flip of each, by the row and the column of every pixel."""
    tops, lefts, flips = to_device(draws, pixels.device).unsqueeze(-1).unbind(1)
    steps = torch.arange(size, device=pixels.device)
    rows, columns = tops + steps, lefts + torch.where(flips.bool(), size - 1 - steps, steps)
    images = torch.arange(len(pixels), device=pixels.device) if places is None else places
    return pixels[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def gather_rows(pixels: Tensor, size: int, draws: Sequence[tuple[int, int, bool]]) -> Tensor:
    """Return the same as `gather_pixels`; on a CPU, it is seven times as fast to copy whole rows, and flip them after.

    The crops are chosen from a view of all windows of the batch: one begins at every pixel.
    """
    channels, side = pixels.shape[1], pixels.shape[-1]
    pixels = pixels.contiguous()
    span = (channels - 1) * side**2 + (size - 1) * side + size
    windows = (pixels.numel() - span + 1, channels, size, size)
    starts = [(index * channels * side + top) * side + left for index, (top, left, _) in enumerate(draws)]
    crops = pixels.as_strided(windows, (1, side**2, side, 1)).index_select(0, torch.tensor(starts))
    flipped = torch.tensor([index for index, draw in enumerate(draws) if draw[2]], dtype=torch.long)
    return crops.index_copy_(0, flipped, crops.index_select(0, flipped).flip(-1))


@contextmanager
def _own_generators(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds all generators a transform may draw from; restore their states afterwards."""
    gpus = [device] if device.type == "cuda" else []
    state, numpy_state = random.getstate(), np.random.get_state()

    def seed_all(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed([seed % 2**32, seed // 2**32])

    try:
        with torch.random.fork_rng(devices=gpus):
            yield seed_all
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _make(element: Element, size: int) -> Transform:
    if isinstance(element, str):
        if element not in NAMED:
            raise InputError(
                f"data.augment={element} is unknown: choose from {', '.join(NAMED)}, give a transform, or [] for none."
                + did_you_mean(element, NAMED)
            )
        return NAMED[element](size)
    transform = instantiate("data.augment", element) if isinstance(element, Mapping) else element
    if not callable(transform):
        raise InputError(f"data.augment: {_label(element)} is not a transform: it cannot be called with an image")
    return transform


def _label(element: Element) -> str:
    if isinstance(element, str):
        return element
    if isinstance(element, Mapping):
        return str(element.get("_target_"))
    return str(getattr(element, "__qualname__", type(element).__qualname__))


def _is_image(value: Any, least: int) -> bool:
    form = isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 3
    return form and value.shape[0] == 3 and min(value.shape[1:]) >= least


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__qualname__}"
