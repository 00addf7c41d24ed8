"""Losses, compared with PyTorch's and torchvision's, and with their definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from blockwise.errors import InputError
from blockwise.recipe.losses import CrossEntropy, Focal, check_loss, with_class_counts


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(12, 5), torch.arange(12) % 5


def test_cross_entropy_is_pytorchs(batch):
    logits, labels = batch
    assert torch.equal(CrossEntropy()(logits, labels), F.cross_entropy(logits, labels))
    smooth = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(CrossEntropy(label_smoothing=0.1)(logits, labels), smooth)


def test_class_weights_are_sums_over_images(batch):
    logits, labels = batch
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])
    summed = F.cross_entropy(logits, labels, weights, reduction="sum") / len(labels)
    for loss in (CrossEntropy(class_weights=weights.tolist()), Focal(gamma=0, class_weights=weights.tolist())):
        assert loss(logits, labels) == pytest.approx(float(summed), rel=1e-6)
        # two halves of a batch give what the batch gives
        halves = (loss(logits[:6], labels[:6]) + loss(logits[6:], labels[6:])) / 2
        assert halves == pytest.approx(float(summed), rel=1e-6)


def test_focal_of_two_classes_is_torchvisions(batch):
    logits = batch[0][:, :1] * 2
    labels = torch.arange(12) % 2
    expected = sigmoid_focal_loss(logits[:, 0], labels.float(), alpha=-1, gamma=2, reduction="mean")
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert Focal(gamma=2)(pair, labels) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_a_class_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0, -200.0], [0.0, 1.0, 2.0]], requires_grad=True)
    Focal(gamma=gamma)(logits, torch.tensor([0, 1])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 0


def test_focal_without_gamma_is_cross_entropy_also_of_mixed_labels(batch):
    logits, labels = batch
    assert Focal(gamma=0)(logits, labels) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    mixed = torch.rand(12, 5).softmax(1)
    assert Focal(gamma=0)(logits, mixed) == pytest.approx(float(F.cross_entropy(logits, mixed)), rel=1e-6)
    hard = F.one_hot(labels, 5).float()
    assert Focal(gamma=2)(logits, hard) == pytest.approx(float(Focal(gamma=2)(logits, labels)), rel=1e-6)


def test_balanced_weights_are_scikit_learns():
    compute_class_weight = pytest.importorskip("sklearn.utils").compute_class_weight
    labels = [0] * 10 + [1] * 5 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels).tolist()
    assert with_class_counts(CrossEntropy(class_weights="balanced"), [10, 5, 1]).class_weights == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CrossEntropy(label_smoothing=1.5),
            "loss.label_smoothing=1.5 must be a number of at least 0 and below 1",
        ),
        (lambda: CrossEntropy(label_smoothing=-0.1), "loss.label_smoothing=-0.1 must be"),
        (lambda: Focal(gamma=-1), "loss.gamma=-1 must be a number of at least 0"),
        (lambda: CrossEntropy(class_weights="unbalanced"), "loss.class_weights=unbalanced must be balanced"),
        (lambda: CrossEntropy(class_weights=[1, -1]), "must be balanced, one number per class"),
        (lambda: with_class_counts(CrossEntropy(class_weights=[1, 2]), [3, 4, 5]), "2 weights for 3 classes"),
        (lambda: check_loss(CrossEntropy(class_weights="balanced"), 3), "needs to know the training images"),
        (lambda: check_loss(lambda logits: logits, 3), "cannot be called with logits and labels"),
        (lambda: check_loss(lambda logits, labels: logits, 3), "must return a scalar"),
        (lambda: check_loss(torch.nn.CrossEntropyLoss(reduction="sum"), 3), "is a sum over images"),
        (lambda: check_loss(torch.nn.MultiMarginLoss(), 3, mixed=True), "probabilities of mixed labels"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()
