"""What each image adds to the scores of rows, and how far scores may be from those on other images and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from blockwise.analysis.summary import Row
from blockwise.results.predictions import Predictions, read_predictions


def image_scores(rows: Sequence[Row], split: Literal["val", "test"], select_by: str = "top1") -> list[np.ndarray]:
    """Return what each image adds to each row's score: one array per common seed, shape (images, rows).

    Returns:
        An empty list if predictions are missing (records of earlier versions have none) or are of other images.
    """
    common = set.intersection(*(row.seeds for row in rows)) if rows else set()
    found = []
    for seed in sorted(common):
        kept = [read_predictions(record, split) for row in rows for record in row.records if record.seed == seed]
        present = [one for one in kept if one is not None]
        if len(present) < len(rows) or any(not np.array_equal(present[0].label, one.label) for one in present):
            return []
        found.append(np.stack([contributions(one, select_by) for one in present], axis=1))
    return found


def contributions(kept: Predictions, select_by: str) -> np.ndarray:
    """Return values whose mean is the score, and whose variance over images is its noise; shape (images,).

    The macro F1 and the mean per-class accuracy are no means over images. An image adds its influence on them (the
    derivative by the image's weight).
    """
    if select_by == "top1":
        return kept.correct.astype(float)
    if select_by == "loss":
        return kept.log_likelihood.astype(float)
    if select_by == "probability":
        return np.exp(kept.log_likelihood.astype(float))
    hits, classes = kept.correct.astype(float), len(kept.classes)
    per_class = np.bincount(kept.label, minlength=classes)
    if select_by == "mean_per_class":
        within = np.bincount(kept.label, hits, minlength=classes) / np.maximum(per_class, 1)
        present = per_class > 0
        influence = (hits - within[kept.label]) * len(hits) / per_class[kept.label] / present.sum()
        return np.asarray(influence + within[present].mean())
    counts = per_class + np.bincount(kept.predicted, minlength=classes)
    present, counts = counts > 0, np.maximum(counts, 1)
    f1 = 2 * np.bincount(kept.label, hits, minlength=classes) / counts
    weight = len(hits) / counts / present.sum()
    influence = 2 * hits * weight[kept.label] - (f1 * weight)[kept.label] - (f1 * weight)[kept.predicted]
    return np.asarray(influence + f1[present].mean())


def over_seeds(scores: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the mean over seeds of what the images at each place add, shape (images, rows); None if numbers differ.

    Its variance over places is right both if the seeds have the same images and if they have different ones.
    """
    return np.mean(scores, axis=0) if len({len(one) for one in scores}) == 1 else None


def covariance(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return the covariance of rows' mean scores over other images and seeds, shape (rows, rows).

    Args:
        scores: One array per seed, shape (images, rows).
    """
    together = over_seeds(scores)
    if together is None:
        of_images = np.mean([of_mean(one) for one in scores], axis=0) / len(scores)
    else:
        of_images = of_mean(together)
    return np.asarray(of_images + seed_variance(scores) / len(scores) * np.eye(scores[0].shape[1]))


def of_mean(scores: np.ndarray) -> np.ndarray:
    """Return the covariance of means over images; scores have shape (images, rows).

    Few images give some differences of rows hardly any variance, by chance. So the covariance is that of these images
    and of as many more as there are rows, in which the differences of all rows have the same variance.
    """
    images, rows = scores.shape
    found = np.atleast_2d(np.cov(scores.T))
    of_differences = (np.trace(found) - found.mean() * rows) / max(1, rows - 1)
    share = rows / (images + rows) if rows > 1 else 0.0
    return np.asarray((1 - share) * found + share * of_differences * np.eye(rows)) / images


def seed_variance(scores: Sequence[np.ndarray]) -> float:
    """Return by how much the differences of rows vary over seeds, beyond what their images explain, as a variance.

    It is the interaction of rows and seeds in a two-way analysis of variance, without the images' share; 0 with one
    seed.
    """
    seeds, rows = len(scores), scores[0].shape[1]
    if seeds < 2 or rows < 2:
        return 0.0
    means = np.array([one.mean(0) for one in scores])
    interaction = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    together = over_seeds(scores)
    # what the images at one place add in all seeds, is no difference between seeds
    own = scores if together is None else [np.sqrt(seeds / (seeds - 1)) * (one - together) for one in scores]
    of_images = np.mean([np.atleast_2d(np.cov(one.T)) / len(one) for one in own], axis=0)
    expected = (np.trace(of_images) - of_images.mean() * rows) / (rows - 1)
    return max(0.0, float((interaction**2).sum() / ((seeds - 1) * (rows - 1)) - expected))
