"""Accuracy of a linear probe at each boundary."""

from __future__ import annotations

from blockwise.errors import InputError
from blockwise.ranking.sample import Sample, features_at, left_out


def probe(sample: Sample) -> dict[str, float]:
    """Return how well a linear classifier does on what enters each block: its accuracy on images left out.

    Alain & Bengio (2016), "Understanding intermediate layers using linear classifier probes". The classifier is ridge
    regression on the means over positions; each image is left out once, in closed form.

    Raises:
        InputError: The network cannot be cut.
    """
    backbone = sample.backbone
    if backbone.whole:
        raise InputError("the score probe needs the activations between blocks, but this network cannot be cut")
    entry = {str(block): backbone.partition.stages_of(block)[0] for block in range(len(backbone.partition))}
    found = features_at(sample, set(entry.values()))
    accuracy = {
        boundary: float(
            (left_out(features, sample.labels, sample.num_classes).argmax(1) == sample.labels).double().mean()
        )
        for boundary, features in found.items()
    }
    return {block: accuracy[boundary] for block, boundary in entry.items()}
