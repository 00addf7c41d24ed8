"""MixUp and CutMix: each training image is mixed with a partner of its batch, and its label likewise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from blockwise.data.pixels.on_device import to_device


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed.

    Attributes:
        share: Share of the image itself, between 0 and 1; the rest is its partner's.
        box: Left, top, right and bottom of the part that comes from the partner; None blends the whole images.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(seed: int, mixup: float, cutmix: float, size: int) -> Mix:
    """Return the mix of a batch, drawn with its seed; if both are on, one of them is chosen at random.

    Args:
        seed: Seed of the batch.
        mixup: Alpha of MixUp's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's Beta distribution; 0 is off.
        size: Side of the images.
    """
    random = np.random.default_rng(seed)
    cut = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(random.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    x, y = (int(value) for value in random.integers(size, size=2))
    half = int(0.5 * math.sqrt(1 - share) * size)
    box = (max(x - half, 0), max(y - half, 0), min(x + half, size), min(y + half, size))
    # boxes are cut off at the edges
    return Mix(1 - (box[2] - box[0]) * (box[3] - box[1]) / size**2, box)


def mix_batch(images: Tensor, labels: Tensor, partners: Sequence[int], classes: int, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner.

    Args:
        images: Normalised images, shape (images, 3, size, size).
        labels: Their classes, shape (images,).
        partners: For each of the first images, the index of its partner; images beyond them are partners only.
        classes: Number of classes.
        mix: How to mix.

    Returns:
        The mixed images, shape (len(partners), 3, size, size), and the probabilities of the classes, float32, shape
        (len(partners), classes).
    """
    index = to_device(list(partners), images.device, torch.long)
    own, known = images[: len(index)], one_hot(labels, classes).float()
    if mix.box is None:
        mixed = _blend(own, images[index], mix.share)
    else:
        left, top, right, bottom = mix.box
        mixed = own.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][index]
    mixed_labels = _blend(known[: len(index)], known[index], mix.share)
    return mixed.contiguous(memory_format=torch.channels_last), mixed_labels


def _blend(own: Tensor, partners: Tensor, share: float) -> Tensor:
    return partners.mul(1 - share).add_(own.mul(share))
