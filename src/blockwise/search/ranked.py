"""Training only the blocks that a score puts first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.search.strategy import Exhaustive, Trials


@dataclass(frozen=True)
class Ranked(Exhaustive):
    """Computes a score of each block before training, and trains the blocks with the highest ones.

    Attributes:
        score: The name of the score; see `blockwise.ranking`.
        keep: Number of blocks that train.

    Raises:
        InputError: A setting is invalid.
    """

    score: str
    keep: int = 3

    def __post_init__(self) -> None:
        check_whole("search.keep", self.keep, 1)

    def rounds(self, scopes: Sequence[str], trials: Trials) -> Iterator[Sequence[str]]:
        """Yield all scopes but the single blocks with lower scores."""
        blocks = [scope for scope in scopes if scope.isdigit()]
        if len(blocks) <= self.keep:
            yield scopes
            return
        scores = trials.ranking(self.score)
        best = sorted(blocks, key=lambda block: (scores[block], int(block)), reverse=True)[: self.keep]
        yield [scope for scope in scopes if not scope.isdigit() or scope in best]
