"""How sure is the choice of a block: how likely is each block to be the best one, and which blocks may be?

Validation scores are estimates from few images, and the highest of twelve estimates is often that of another block than
the best one.

1. **Noise.** All blocks classify the same images, so their errors are correlated. The covariance of their mean scores
   is what a paired bootstrap over images converges to (the infinitesimal jackknife; Efron, 2014, "Estimation and
   accuracy after model selection"). With several seeds, the variance over seeds is added.
2. **Shrinkage.** The true scores of the blocks have a normal distribution of unknown spread (Efron & Morris, 1975,
   "Data analysis using Stein's estimator"). The spread is integrated out: scores that differ no more than by noise are
   taken for nearly equal. Blocks that are clearly not the best do not count for the spread: a single block that is far
   worse would make it wide, and the differences between the others would pass for real. On demand, the true scores are
   smooth over depth; then all blocks count, since bad neighbours tell against a block.
3. **Probability.** The probability that a block is the best one is its share of draws from this posterior distribution.
   The set is the smallest one whose probabilities add up to the level.

The bootstrap alone is too sure, since the highest score is also the luckiest. The Model Confidence Set (Hansen, Lunde &
Nason, 2011) keeps nearly every block. `experiments/selection` compares how often each set contains the best block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockwise.analysis.summary import Sweep
from blockwise.analysis.uncertainty.posterior import DRAWS, posterior, smooth_posterior
from blockwise.analysis.uncertainty.scores import covariance, image_scores

LEVEL = 0.9
# a block is clearly not the best if it is less likely to be than this part of an equal share
NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Confidence:
    """The probability that each block of a sweep is the best one.

    Attributes:
        probability: Probability of each single block, by scope; highest first.
        shrunk: The expected validation score of each block that is not clearly worse, relative to their mean, by scope.
        level: The probability of the set of blocks that may be the best.
        smooth: Whether the true scores were taken for a smooth function of depth.
    """

    probability: dict[str, float]
    shrunk: dict[str, float]
    level: float = LEVEL
    smooth: bool = False

    @property
    def expected_best(self) -> str:
        """The block with the highest expected score."""
        return max(self.shrunk, key=self.shrunk.__getitem__)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The smallest set of blocks that contains the best one with this probability, the likeliest first."""
        total, found = 0.0, []
        for scope, probability in self.probability.items():
            if total >= self.level - 1e-9:
                break
            found.append(scope)
            total += probability
        return tuple(found)


def confidence(sweep: Sweep, level: float = LEVEL, *, smooth: bool = False) -> Confidence | None:
    """Return how sure the choice of the best block of a sweep is.

    What is certain or not is which of the recorded blocks, at their best learning rates, has the highest score on other
    images like these; with several seeds, on average over seeds.

    Args:
        sweep: The sweep.
        level: The probability of the set of blocks that may be the best.
        smooth: Take the true scores for a smooth function of depth, so that neighbouring blocks support each other.

    Returns:
        None if a block has no predictions of validation images (records of earlier versions), if the images of blocks
        differ, if there is one image alone, or one block: its search has stopped the others for other reasons.
    """
    blocks = sorted(sweep.single_blocks, key=lambda row: row.blocks)
    if len(blocks) < 2:
        return None
    scores = image_scores(blocks, "val", sweep.select_by)
    if not scores or min(len(images) for images in scores) < 2:
        return None
    return from_scores([row.scope for row in blocks], scores, level, smooth=smooth)


def from_scores(
    scopes: Sequence[str],
    scores: Sequence[np.ndarray],
    level: float = LEVEL,
    draws: int = DRAWS,
    *,
    smooth: bool = False,
) -> Confidence:
    """Return how sure a choice is, given what each image adds to each block's score.

    Args:
        scopes: Names of the blocks, input side first.
        scores: One array per seed, shape (images, blocks).
        level: The probability of the set of blocks that may be the best.
        draws: Number of draws from the posterior distribution.
        smooth: Take the true scores for a smooth function of depth.
    """
    left = np.arange(len(scopes))
    while True:
        own = [one[:, left] for one in scores]
        means, noise = np.mean([one.mean(0) for one in own], axis=0), covariance(own)
        drawn = (smooth_posterior if smooth else posterior)(means, noise, draws)
        shares = np.bincount(drawn.argmax(1), minlength=len(left)) / draws
        likely = shares >= NEGLIGIBLE / len(left)
        if smooth or likely.all():
            break
        left = left[likely]
    probability = np.zeros(len(scopes))
    probability[left] = shares
    order = np.argsort(-probability, kind="stable")
    shrunk = dict(zip((scopes[int(i)] for i in left), map(float, drawn.mean(0)), strict=True))
    return Confidence({scopes[i]: float(probability[i]) for i in order}, shrunk, level, smooth)
