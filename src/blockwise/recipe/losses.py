"""Training losses; labels are classes, or probabilities if images are mixed.

Each returns the mean over the images of a batch, so that several devices which share a batch train as one does.
PyTorch divides by the sum of the class weights in the batch instead, which would depend on how a batch is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from blockwise.errors import InputError, first_line, is_number

BALANCED = "balanced"
UNKNOWN_COUNTS = "loss.class_weights=balanced needs to know the training images: give one weight per class"
Weights = Sequence[float] | str | None


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy.

    Attributes:
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al., 2016, section 7).
        class_weights: One weight per class, or `balanced`: images / (classes x images of the class).

    Raises:
        InputError: A value is invalid.
    """

    label_smoothing: float = 0.0
    class_weights: Weights = None

    def __post_init__(self) -> None:
        _check_number("loss.label_smoothing", self.label_smoothing, most=1)
        _check_weights(self.class_weights)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits, shape (batch, classes)."""
        weights = _tensor(self.class_weights, logits)
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=self.label_smoothing)
        return losses.mean()


@dataclass(frozen=True)
class Focal:
    """Focal loss, which counts images less the better they are classified (Lin et al., 2017, section 3.2).

    Attributes:
        gamma: How much less; 0 is cross entropy.
        class_weights: One weight per class, or `balanced`: images / (classes x images of the class).

    Raises:
        InputError: A value is invalid.
    """

    gamma: float = 2.0
    class_weights: Weights = None

    def __post_init__(self) -> None:
        _check_number("loss.gamma", self.gamma)
        _check_weights(self.class_weights)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits, shape (batch, classes)."""
        log_p = logits.log_softmax(1)
        others = 1 - log_p.exp()
        if 0 < self.gamma < 1:  # where it is 0, the power has no gradient
            others = others.clamp_min(torch.finfo(others.dtype).tiny)
        losses = -(others**self.gamma) * log_p
        if (weights := _tensor(self.class_weights, logits)) is not None:
            losses = losses * weights
        if labels.ndim == 1:
            return losses.gather(1, labels[:, None]).mean()
        return (losses * labels).sum(1).mean()


Own = TypeVar("Own")


def with_class_counts(loss: Own, counts: Sequence[int]) -> Own:
    """Return a loss with `balanced` class weights as numbers; any other loss as it is.

    Args:
        loss: The loss.
        counts: Training images of each class.

    Raises:
        InputError: There are more or fewer class weights than classes.
    """
    if not isinstance(loss, (CrossEntropy, Focal)) or loss.class_weights is None:
        return loss
    if loss.class_weights == BALANCED:
        return replace(loss, class_weights=[sum(counts) / (len(counts) * count) for count in counts])
    if len(loss.class_weights) != len(counts):
        raise InputError(f"loss.class_weights has {len(loss.class_weights)} weights for {len(counts)} classes")
    return loss


def check_not_balanced(loss: object) -> None:
    """Check that a loss needs no numbers of training images.

    Raises:
        InputError: It has `balanced` class weights.
    """
    if isinstance(loss, (CrossEntropy, Focal)) and loss.class_weights == BALANCED:
        raise InputError(UNKNOWN_COUNTS)


def check_loss(loss: object, classes: int, *, mixed: bool = False) -> None:
    """Check a loss on two images.

    Raises:
        InputError: It cannot be called with logits and labels, does not return a scalar with a gradient, or is a sum
            over images: then the gradient would depend on the size of the batch, and be wrong on several devices.
    """
    logits = torch.zeros(2, classes, requires_grad=True)
    labels = torch.full((2, classes), 1 / classes) if mixed else torch.zeros(2, dtype=torch.long)
    kind = "probabilities of mixed labels" if mixed else "labels"
    try:
        value = loss(logits, labels)  # type: ignore[operator]
        twice = loss(torch.cat([logits, logits]), torch.cat([labels, labels]))  # type: ignore[operator]
    except Exception as error:  # a loss may be the user's own
        reason = first_line(error)
        raise InputError(f"the loss cannot be called with logits and {kind} ({reason}): check the loss") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise InputError("the loss must return a scalar tensor that depends on the logits")
    if float(value.detach()) and torch.allclose(twice, 2 * value):
        raise InputError("the loss is a sum over images: it must be a mean (reduction=mean)")


def _tensor(weights: Weights, like: Tensor) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, str):
        raise InputError(UNKNOWN_COUNTS)
    return torch.tensor([float(w) for w in weights], device=like.device)


def _check_number(name: str, value: float, most: float | None = None) -> None:
    if not is_number(value) or value < 0 or (most is not None and value >= most):
        valid = "a number of at least 0" if most is None else f"a number of at least 0 and below {most}"
        raise InputError(f"{name}={value} must be {valid}")


def _check_weights(weights: object) -> None:
    if weights is None or (isinstance(weights, str) and weights == BALANCED):
        return
    numbers = [] if isinstance(weights, (str, bool)) or not isinstance(weights, Iterable) else list(weights)
    sound = all(is_number(weight) and weight >= 0 for weight in numbers)
    if not numbers or not sound or not any(numbers):
        raise InputError(f"loss.class_weights={weights} must be {BALANCED}, one number per class, or null")
