"""Scores of blocks before training: which block might be worth it?

A score is a function of a `Sample` that returns a number per single block, by the block's name; higher means that the
block is tried earlier. Register one of your own, and `search=ranked search.score=<name>` and `blockwise rank` know it:

>>> from blockwise.ranking import SCORES
>>> def depth(sample):
...     return {str(block): float(block) for block in range(len(sample.backbone.partition))}
>>> SCORES["depth"] = depth
>>> del SCORES["depth"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockwise.errors import InputError, did_you_mean
from blockwise.ranking.gradients import fisher, gradient_norm, gradient_snr, saliency
from blockwise.ranking.probe import probe
from blockwise.ranking.sample import Sample

Score = Callable[[Sample], Mapping[str, float]]
SCORES: dict[str, Score] = {
    "gradient_norm": gradient_norm,
    "gradient_snr": gradient_snr,
    "fisher": fisher,
    "saliency": saliency,
    "probe": probe,
}
# computed by a study, since it trains: minus the training loss of the first epoch
FIRST_LOSS = "first_loss"


def score_names() -> list[str]:
    """Return the names of all scores."""
    return [*SCORES, FIRST_LOSS]


def check_score(name: str) -> None:
    """Check the name of a score.

    Raises:
        InputError: There is no such score.
    """
    if name not in score_names():
        known = score_names()
        raise InputError(f"search.score={name} is unknown: choose {', '.join(known)}.{did_you_mean(str(name), known)}")


__all__ = ["FIRST_LOSS", "SCORES", "Sample", "Score", "check_score", "score_names"]
