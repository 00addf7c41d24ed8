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
)

# what predictions of single images can be tested for; of macro F1 and mean per-class accuracy, it is the accuracy
TESTED = ("select_by", "top1", "loss", "probability")


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
        judge: What is tested: `select_by`, `top1`, `loss` or `probability`, at the epoch that `select_by` has chosen.

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
        if self.judge not in TESTED:
            raise InputError(f"search.judge={self.judge} is no judge of a race: choose {', '.join(TESTED)}")

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int) -> set[str]:
        """Return the cells that are significantly worse than the best rate of their scope, or than the best block."""
        del max_epochs
        if epoch < self.min_epochs:
            return set()
        stopped: set[str] = set()
        leaders: dict[str, Candidate] = {}
        for rates in by_scope(candidates):
            best, *others = self._best_first(rates)
            stopped |= {c.key for c in others if self._worse(c, best)}
            leaders[best.scope] = best
        blocks = self._best_first([c for c in leaders.values() if c.is_block])
        lost = {c.scope for c in blocks[1:] if self._worse(c, blocks[0])}
        return stopped | {c.key for c in candidates if c.scope in lost}

    def _best_first(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Sort cells by what is tested; of equals, by what `select_by` says."""
        ordered = best_first(candidates, "select_by")
        if self.judge == "select_by":
            return ordered
        return sorted(ordered, key=lambda c: -float(self._values(c).mean()))

    def _values(self, candidate: Candidate) -> np.ndarray:
        by = candidate.select_by if self.judge == "select_by" else self.judge
        if by == "loss":
            return candidate.log_likelihood
        return np.exp(candidate.log_likelihood) if by == "probability" else candidate.correct

    def _worse(self, candidate: Candidate, best: Candidate) -> bool:
        own, others = self._values(candidate), self._values(best)
        return (not_worse(own, others) if own.dtype == bool else paired_t(own - others)) < self.level


def not_worse(first: np.ndarray, second: np.ndarray) -> float:
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
