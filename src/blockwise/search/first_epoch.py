"""One epoch for all, the rest for a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.search.strategy import (
    Candidate,
    Exhaustive,
    Judge,
    best_first,
    by_scope,
    check_judge,
)


@dataclass(frozen=True)
class FirstEpoch(Exhaustive):
    """Keeps the best blocks after the first epoch, each at its best learning rate.

    Egele et al. (2023), "Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?". Of `head`, `full`
    and joint scopes, the best learning rate goes on.

    Attributes:
        keep: Number of blocks that go on.
        judge: What a cell is judged by.

    Raises:
        InputError: A setting is invalid.
    """

    keep: int = 3
    judge: Judge = "loss"

    def __post_init__(self) -> None:
        check_whole("search.keep", self.keep, 1)
        check_judge("search.judge", self.judge)

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int) -> set[str]:
        """Return all but the best cells after the first epoch; none later."""
        del max_epochs
        if epoch != 1:
            return set()
        best = [best_first(rates, self.judge)[0] for rates in by_scope(candidates)]
        blocks = best_first((c for c in best if c.is_block), self.judge)[: self.keep]
        kept = {c.key for c in (*blocks, *(c for c in best if not c.is_block))}
        return {c.key for c in candidates} - kept
