"""Successive halving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

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
class Halving(Exhaustive):
    """Stops the weaker part of the cells after each rung; the rungs are further and further apart.

    Jamieson & Talwalkar (2016), "Non-stochastic Best Arm Identification and Hyperparameter Optimization". Rates of a
    scope compete first, then blocks. Blocks share a budget of floating-point operations, not of cells, since a block
    near the input costs more per epoch than one near the head. Of `head`, `full` and joint scopes, only rates compete.

    Attributes:
        min_epochs: Epochs until the first rung; further rungs are at this number times powers of `factor`.
        factor: After a rung, the cells that go on cost at most this part of those before it: 2 for a half.
        keep: Number of blocks that go on at least.
        judge: What a cell is judged by.

    Raises:
        InputError: A setting is invalid.
    """

    min_epochs: int = 1
    factor: float = 2
    keep: int = 1
    judge: Judge = "loss"

    def __post_init__(self) -> None:
        check_whole("search.min_epochs", self.min_epochs, 1)
        if not is_number(self.factor) or self.factor < 2:
            raise InputError(f"search.factor={self.factor} must be a number of at least 2")
        check_whole("search.keep", self.keep, 1)
        check_judge("search.judge", self.judge)

    def rungs(self, max_epochs: int) -> list[int]:
        """Return the numbers of epochs after which cells stop."""
        rungs, at = [], float(self.min_epochs)
        while at < max_epochs:
            rungs.append(ceil(at))
            at *= self.factor
        return rungs

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int) -> set[str]:
        """Return the weaker cells after a rung; none between rungs."""
        if epoch not in self.rungs(max_epochs):
            return set()
        kept: list[Candidate] = []
        blocks: list[list[Candidate]] = []
        for rates in by_scope(candidates):
            best = best_first(rates, self.judge)[: ceil(len(rates) / self.factor)]
            if best[0].is_block:
                blocks.append(best)
            else:
                kept += best
        budget = sum(c.flops for c in candidates if c.is_block) / self.factor
        order = {c.scope: place for place, c in enumerate(best_first((rates[0] for rates in blocks), self.judge))}
        cost = 0
        for place, rates in enumerate(sorted(blocks, key=lambda rates: order[rates[0].scope])):
            cost += sum(c.flops for c in rates)
            if place >= self.keep and cost > budget:
                break
            kept += rates
        return {c.key for c in candidates} - {c.key for c in kept}
