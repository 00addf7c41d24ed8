"""Which set of blocks: add the block that helps most, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockwise.errors import InputError, check_whole, is_number
from blockwise.results.record import Score
from blockwise.search.strategy import Exhaustive, Trials


@dataclass(frozen=True)
class Greedy(Exhaustive):
    """Trains all scopes, then the best block jointly with each other block, then the best pair with each, and so on.

    SubTuning (Kaplun et al., 2023, "Less is More: Selective Layer Finetuning with SubTuning"). The candidates of a
    round train side by side. The search ends when the best candidate of a round is not better by `epsilon` than the
    set that it extends.

    Attributes:
        epsilon: The least gain of a round in the metric of `select_by`: 0.01 for one point of accuracy.
        most: Largest number of blocks in a set; None for any.

    Raises:
        InputError: A setting is invalid.
    """

    epsilon: float = 0.0
    most: int | None = None

    def __post_init__(self) -> None:
        if not is_number(self.epsilon) or self.epsilon < 0:
            raise InputError(f"search.epsilon={self.epsilon} must be a number of at least 0")
        if self.most is not None:
            check_whole("search.most", self.most, 1)

    def rounds(self, scopes: Sequence[str], trials: Trials) -> Iterator[Sequence[str]]:
        """Yield all scopes, then the best set so far with each block that it lacks."""
        yield scopes
        blocks = [scope for scope in scopes if scope.isdigit()]
        chosen: list[str] = []
        best: Score | None = None
        candidates = blocks
        while candidates:
            scores = {scope: score for scope in candidates if (score := trials.score(scope)) is not None}
            if not scores:
                return
            # of equals, the one nearest to the head
            winner = max(scores, key=lambda scope: (scores[scope], sorted(map(int, scope.split("+")))))
            if best is not None and scores[winner][0] - best[0] <= self.epsilon:
                return
            chosen, best = winner.split("+"), scores[winner]
            if self.most is not None and len(chosen) >= self.most:
                return
            candidates = [_joint(chosen, block) for block in blocks if block not in chosen]
            if candidates:
                yield candidates


def _joint(blocks: Sequence[str], block: str) -> str:
    return "+".join(sorted((*blocks, block), key=int))
