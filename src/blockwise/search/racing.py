"""Racing: a cell stops once it is significantly worse than the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockwise.errors import InputError, check_whole, is_number
from blockwise.search.strategy import (
    Candidate,
    Exhaustive,
    Judge,
    best_first,
    by_scope,
    check_judge,
)


@dataclass(frozen=True)
class Racing(Exhaustive):
    """Stops cells that are significantly worse than the best one on the same validation images.

    Maron & Moore (1994), "Hoeffding Races"; Birattari et al. (2002), "A Racing Algorithm for Configuring
    Metaheuristics". Rates of a scope race first, then blocks at their best rates; a block that loses stops at all
    rates. The test is McNemar's exact test of correct predictions. If cells are judged by a loss, it is a paired t-test
    of log-likelihoods, and by probability, one of the probabilities of the true class. All are one-sided. They are not
    corrected for the number of comparisons: `level` sets how quickly cells stop, and is no error rate of the race.

    Attributes:
        level: A cell stops if the p-value is below this level.
        min_epochs: Epochs before the first comparison.
        judge: What decides which cell is the best.

    Raises:
        InputError: A setting is invalid.
    """

    level: float = 0.05
    min_epochs: int = 2
    judge: Judge = "select_by"

    def __post_init__(self) -> None:
        if not is_number(self.level) or not 0 < self.level < 1:
            raise InputError(f"search.level={self.level} must be a number between 0 and 1")
        check_whole("search.min_epochs", self.min_epochs, 1)
        check_judge("search.judge", self.judge)

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int) -> set[str]:
        """Return the cells that are significantly worse than the best rate of their scope, or than the best block."""
        del max_epochs
        if epoch < self.min_epochs:
            return set()
        stopped: set[str] = set()
        leaders: dict[str, Candidate] = {}
        for rates in by_scope(candidates):
            best, *others = best_first(rates, self.judge)
            stopped |= {c.key for c in others if self._worse(c, best)}
            leaders[best.scope] = best
        blocks = best_first((c for c in leaders.values() if c.is_block), self.judge)
        lost = {c.scope for c in blocks[1:] if self._worse(c, blocks[0])}
        return stopped | {c.key for c in candidates if c.scope in lost}

    def _worse(self, candidate: Candidate, best: Candidate) -> bool:
        by = candidate.select_by if self.judge == "select_by" else self.judge
        if by in ("loss", "train_loss"):
            return paired_t(candidate.log_likelihood - best.log_likelihood) < self.level
        if by == "probability":
            return paired_t(np.exp(candidate.log_likelihood) - np.exp(best.log_likelihood)) < self.level
        return mcnemar(candidate.correct, best.correct) < self.level


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test that the first is not worse, given which predictions are correct."""
    from scipy.stats import binom

    won, lost = int((first & ~second).sum()), int((~first & second).sum())
    return float(binom.cdf(won, won + lost, 0.5))


def paired_t(differences: np.ndarray) -> float:
    """Return the p-value of a one-sided t-test that the mean of the differences is not below 0."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or np.ptp(differences) == 0:
        return 1.0
    return float(ttest_1samp(differences, 0.0, alternative="less").pvalue)
