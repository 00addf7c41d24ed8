"""The metrics of a record and what is kept of each image, computed from logits and labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from blockwise.results.record import Metrics


def predictions(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return what is kept of each image, on the CPU.

    Args:
        logits: Shape (images, classes).
        labels: Shape (images,).

    Returns:
        `label`, `predicted`, `confidence` (the softmax of the predicted class) and `log_likelihood` (the log of the
        softmax of the true class), each of shape (images,).
    """
    predicted = logits.argmax(1)
    highest, likelihood = logits.log_softmax(1).gather(1, torch.stack([predicted, labels], 1)).unbind(1)
    kept = {"label": labels, "predicted": predicted, "confidence": highest.exp(), "log_likelihood": likelihood}
    return {name: values.cpu() for name, values in kept.items()}


def compute_metrics(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute the metrics that a record contains per split, as fractions.

    Args:
        logits: Shape (images, classes).
        labels: Shape (images,).

    Returns:
        Top-1 and top-5 accuracy (top-`classes` with fewer than five classes), macro-averaged F1, expected calibration
        error (15 bins, L1; Guo et al., 2017), mean cross-entropy, mean probability of the true class (the softmax), and
        the accuracy within each class, averaged over the classes that have images.
    """
    classes, probabilities = logits.shape[1], logits.softmax(1)
    options: Any = {"num_classes": classes, "validate_args": False}
    values = {
        "top1": multiclass_accuracy(logits, labels, average="micro", **options),
        "top5": multiclass_accuracy(logits, labels, average="micro", top_k=min(5, classes), **options),
        "macro_f1": multiclass_f1_score(logits, labels, average="macro", **options),
        "ece": multiclass_calibration_error(probabilities, labels, n_bins=15, norm="l1", **options),
        "loss": cross_entropy(logits, labels),
        "probability": probabilities.gather(1, labels[:, None]).mean(),
        "mean_per_class": multiclass_accuracy(logits, labels, average="none", **options)[labels.unique()].mean(),
    }
    # transfer all metrics from the device at once
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
