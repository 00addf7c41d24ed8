"""Scores from the gradients of single images, before any training.

The new head would have random weights and so would the gradients; a linear classifier on the pretrained network's own
features, fitted by ridge regression, takes its place. All norms are in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from blockwise.backbone.stages import pooled
from blockwise.ranking.sample import Sample, ridge
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import Scope
from blockwise.training.trainable import trainable

# scale of the classifier's outputs, which are near 0 and 1, so that the softmax is neither flat nor certain
SCALE = 5.0


@dataclass(frozen=True)
class Gradients:
    """The gradients of one parameter over images.

    Attributes:
        weight: The parameter.
        mean: Mean gradient, of the parameter's shape.
        square: Mean square of the gradient, of the same shape.
    """

    weight: Tensor
    mean: Tensor
    square: Tensor


def relative_norm(gradients: Gradients) -> tuple[float, float]:
    """Return squared norms of the gradient and of the weights."""
    return float(gradients.mean.square().sum()), float(gradients.weight.square().sum())


def signal_and_noise(gradients: Gradients) -> tuple[float, float]:
    """Return the squared norm of the mean gradient and the variance of the gradient over images."""
    signal = gradients.mean.square()
    return float(signal.sum()), float((gradients.square - signal).sum())


def gradient_norm(sample: Sample) -> dict[str, float]:
    """Return the norm of each block's gradient relative to that of its weights (Auto-RGN).

    Lee et al. (2023), "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", section 4.
    """
    return _ratio(sample, relative_norm, power=0.5)


def gradient_snr(sample: Sample) -> dict[str, float]:
    """Return the signal-to-noise ratio of each block's gradient over images (Auto-SNR).

    Lee et al. (2023), "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", section 4.
    """
    return _ratio(sample, signal_and_noise)


def fisher(sample: Sample) -> dict[str, float]:
    """Return the trace of each block's empirical Fisher information: the mean squared norm of the gradient of an image.

    Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks".
    """
    return {
        block: sum(float(of_weight.square.sum()) for of_weight in gradients)
        for block, gradients in block_gradients(sample).items()
    }


def saliency(sample: Sample) -> dict[str, float]:
    """Return the sum of each block's products of weight and gradient, without their signs.

    Lee et al. (2019), "SNIP: Single-shot Network Pruning based on Connection Sensitivity".
    """
    return {
        block: sum(float((of_weight.weight * of_weight.mean).abs().sum()) for of_weight in gradients)
        for block, gradients in block_gradients(sample).items()
    }


def _ratio(sample: Sample, parts: Callable[[Gradients], tuple[float, float]], power: float = 1.0) -> dict[str, float]:
    """Return the ratio of two sums over the parameters of each block."""
    ratios = {}
    for block, gradients in block_gradients(sample).items():
        above, below = (sum(values) for values in zip(*map(parts, gradients), strict=True))
        ratios[block] = (above / max(below, 1e-30)) ** power
    return ratios


def block_gradients(sample: Sample) -> Mapping[str, list[Gradients]]:
    """Return the gradients of all parameters of each single block; computed once per sample."""
    if sample not in _computed:
        _computed[sample] = _block_gradients(sample)
    return _computed[sample]


_computed: WeakKeyDictionary[Sample, Mapping[str, list[Gradients]]] = WeakKeyDictionary()


def _block_gradients(sample: Sample) -> Mapping[str, list[Gradients]]:
    backbone = sample.backbone
    everything = tuple(range(len(backbone.partition)))
    network = CellNetwork(backbone, Scope("full", everything), sample.num_classes).to(sample.images.device).eval()
    parameters = {name: p for stage in network.own.values() for name, p in stage.named_parameters() if p.requires_grad}
    with torch.no_grad():
        features = torch.cat([_features(network, sample, images) for images in sample.images.split(32)])
        weight, bias = ridge(features, sample.labels, sample.num_classes)
    means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = len(sample.images)
    for image, label in zip(sample.images, sample.labels, strict=True):
        outputs = _features(network, sample, image[None]).double() @ weight + bias
        loss = F.cross_entropy(SCALE * outputs, label[None])
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                means[name] += gradient / count
                squares[name] += gradient.square() / count
    names = {block: trainable(backbone.partition, block, "all").parameters for block in everything}
    return {
        str(block): [
            Gradients(parameters[name].detach(), means[name], squares[name])
            for name in sorted(names[block] & parameters.keys())
        ]
        for block in everything
    }


def _features(network: CellNetwork, sample: Sample, images: Tensor) -> Tensor:
    """Return the features that the new head would read, shape (images, features)."""
    backbone = sample.backbone
    activations = backbone.enter(images)
    for stage in range(len(backbone)):
        activations = backbone.run(stage, activations, network.own[str(stage)])
    return pooled(backbone.features(activations)).flatten(1)
