"""The paper's own order: from the head towards the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockwise.errors import check_whole
from blockwise.results.record import Score
from blockwise.search.strategy import Exhaustive, Trials


@dataclass(frozen=True)
class TopDown(Exhaustive):
    """Trains one block after another, from the head towards the input, until no block is better than those before it.

    Barakat & Huang (2023). All other scopes train beside the first block.

    Attributes:
        patience: The search ends after this many blocks in a row that are not better than the best one so far.

    Raises:
        InputError: A setting is invalid.
    """

    patience: int = 3

    def __post_init__(self) -> None:
        check_whole("search.patience", self.patience, 1)

    def rounds(self, scopes: Sequence[str], trials: Trials) -> Iterator[Sequence[str]]:
        """Yield one block per round."""
        others = [scope for scope in scopes if not scope.isdigit()]
        blocks = sorted((scope for scope in scopes if scope.isdigit()), key=int, reverse=True)
        if not blocks:
            yield others
        best: Score | None = None
        waited = 0
        for block in blocks:
            yield [*others, block]
            others = []
            score = trials.score(block)
            better = score is not None and (best is None or score > best)
            best, waited = (score, 0) if better else (best, waited + 1)
            if waited == self.patience:
                return
