"""The gain of one row over another on the test images of one data set, with its interval and an exact test."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from blockwise.analysis.summary import Row
from blockwise.analysis.uncertainty.scores import image_scores, over_seeds, seed_variance

LEVEL = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Gain:
    """The difference of two rows' test accuracies, as fractions.

    Attributes:
        difference: Mean difference over the seeds that both have.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        images: Standard deviation of the difference over other test images.
        seeds: Standard deviation of the difference over other seeds; None with one seed.
        p: p-value of McNemar's exact test; with several seeds, twice the median of theirs (Rueger, 1978), which holds
            however much they depend on each other.
    """

    difference: float
    low: float
    high: float
    images: float
    seeds: float | None
    p: float


def gain(row: Row, baseline: Row) -> Gain | None:
    """Compare two rows on the same test images.

    The interval is from a paired bootstrap: images are drawn with replacement, at the same places in all seeds. With
    several seeds, each draw also varies as much as means over seeds do, by Student's t.

    Returns:
        None if predictions are missing or are of other images.
    """
    scores = image_scores([row, baseline], "test")
    if not scores or min(map(len, scores)) < 2:
        return None
    together = over_seeds(scores)
    if together is None:
        return None
    random = np.random.default_rng(0)
    # accuracies of few seeds differ by few values: draw how often each occurs
    values, counts = np.unique(np.round(together[:, 0] - together[:, 1], 6), return_counts=True)
    images = counts.sum()
    means = random.multinomial(images, counts / images, RESAMPLES) @ values / images
    between = None
    if len(scores) > 1:
        # for two rows, the variance of their difference is twice that of the interaction
        between = float(np.sqrt(2 * seed_variance(scores) / len(scores)))
        means = means + between * random.standard_t(len(scores) - 1, RESAMPLES)
    # with two seeds, Student's t may reach beyond what accuracies can differ by
    low, high = np.clip(np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), -1, 1)
    p = min(1.0, (2 if len(scores) > 1 else 1) * median(mcnemar(one[:, 0] > 0, one[:, 1] > 0) for one in scores))
    return Gain(
        float(counts @ values / images),
        float(low),
        float(high),
        float(np.std(together @ [1, -1]) / images**0.5),
        between,
        p,
    )


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test, two-sided.

    Args:
        first: Whether the first network classifies each image correctly.
        second: Whether the second one does.
    """
    from scipy.stats import binomtest

    better, worse = int((first & ~second).sum()), int((~first & second).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
