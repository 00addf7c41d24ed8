"""What scores are computed from: the pretrained network and some training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blockwise.backbone.stages import StagedBackbone, pooled


@dataclass(frozen=True, eq=False)
class Sample:
    """Some training images, and the network that is to be fine-tuned on them.

    Attributes:
        backbone: The pretrained network.
        images: Normalised images, shape (images, 3, size, size).
        labels: Their labels, shape (images,).
        num_classes: Number of classes.
    """

    backbone: StagedBackbone
    images: Tensor
    labels: Tensor
    num_classes: int


def ridge(features: Tensor, labels: Tensor, num_classes: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier to one-hot labels by ridge regression.

    Returns:
        Its weights, shape (features, classes), and biases, shape (classes,), in double precision.

    Args:
        features: Shape (images, features).
        labels: Shape (images,).
        num_classes: Number of classes.
        strength: Strength of the penalty, in units of the number of images.
    """
    x, y = _scaled(features), F.one_hot(labels, num_classes).double()
    # in the space of the images, which are fewer than the features
    dual = x @ x.T + strength * len(x) * torch.eye(len(x), dtype=x.dtype, device=x.device)
    weights = x.T @ torch.linalg.solve(dual, y)
    return weights[:-1] / _size(features), weights[-1]


def left_out(features: Tensor, labels: Tensor, num_classes: int, strength: float = 1.0) -> Tensor:
    """Return the outputs of `ridge` for each image when it is left out, shape (images, classes).

    In closed form, from the residuals with all images and the diagonal of the hat matrix.
    """
    x, y = _scaled(features), F.one_hot(labels, num_classes).double()
    kernel = x @ x.T
    hat = torch.linalg.solve(kernel + strength * len(x) * torch.eye(len(x), dtype=x.dtype, device=x.device), kernel)
    return y - (y - hat @ y) / (1 - hat.diagonal()[:, None])


def _scaled(features: Tensor) -> Tensor:
    """Return features, scaled to a mean square of 1, with a column of ones for the bias."""
    x = features.double() / _size(features)
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def _size(features: Tensor) -> Tensor:
    return features.double().square().mean().sqrt().clamp(min=1e-12)


@torch.no_grad()
def features_at(sample: Sample, boundaries: set[int], batch_size: int = 32) -> dict[int, Tensor]:
    """Return the feature vectors at boundaries, shape (images, features): the means over positions of all live tensors.

    Args:
        sample: Network and images.
        boundaries: Boundaries, from 0 (the pixels) to the number of stages.
        batch_size: Images per batch.
    """
    found: dict[int, list[Tensor]] = {boundary: [] for boundary in boundaries}
    for images in sample.images.split(batch_size):
        for boundary, activations in sample.backbone.boundaries(images, boundaries):
            live = [value for value in activations.values() if isinstance(value, Tensor) and value.ndim > 1]
            found[boundary].append(torch.cat([pooled(value).flatten(1) for value in live], 1))
    return {boundary: torch.cat(parts) for boundary, parts in found.items()}
