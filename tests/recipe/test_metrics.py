"""Metrics against scikit-learn, and the calibration error against a direct implementation of Guo et al. (2017)."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, top_k_accuracy_score

from blockwise.recipe.metrics import compute_metrics
from blockwise.results.store import METRICS


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_metrics_agree_with_independent_ones(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(500, classes, generator=generator)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (500 - classes,), generator=generator)])
    found = compute_metrics(logits, labels)
    assert tuple(found) == METRICS
    probabilities, y = logits.double().softmax(1).numpy(), labels.numpy()
    guesses = probabilities.argmax(1)
    assert found["top1"] == pytest.approx(accuracy_score(y, guesses))
    assert found["macro_f1"] == pytest.approx(f1_score(y, guesses, average="macro"), abs=1e-6)
    assert found["loss"] == pytest.approx(log_loss(y, probabilities, labels=range(classes)), rel=1e-5)
    assert found["probability"] == pytest.approx(probabilities[np.arange(500), y].mean(), rel=1e-5)
    top5 = 1.0 if classes <= 5 else top_k_accuracy_score(y, probabilities, k=5, labels=range(classes))
    assert found["top5"] == pytest.approx(top5)
    assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(y, guesses))
    assert found["ece"] == pytest.approx(calibration_error(probabilities, y), abs=1e-5)


def test_a_class_without_images_has_no_accuracy():
    logits = torch.eye(4)[[0, 0, 3, 1]]
    assert compute_metrics(logits, torch.tensor([0, 0, 0, 1]))["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)


def calibration_error(probabilities, y, bins=15):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    edges = np.linspace(0, 1, bins + 1)
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    return sum(abs(right[i].mean() - confidence[i].mean()) * i.mean() for i in inside if i.any())
