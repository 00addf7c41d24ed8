"""What a search is: it says which scopes train, and after each epoch which cells stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

import numpy as np

from blockwise.errors import InputError
from blockwise.results.record import SELECTIONS, Metrics, Score, selection_score

# What a cell is judged by while it trains: the metric of `select_by`, a validation metric, or the training loss over
# all epochs so far (its sum in Ru et al., 2021, "Speedy Performance Estimation for Neural Architecture Search").
Judge = Literal["select_by", "top1", "mean_per_class", "macro_f1", "loss", "probability", "train_loss"]
JUDGES = ("select_by", *SELECTIONS, "train_loss")


@dataclass(frozen=True)
class Candidate:
    """A cell that has neither diverged nor been stopped by the search.

    Attributes:
        key: The cell's name, unique within a run.
        scope: The name of its scope.
        policy: The name of its policy.
        lr: Its learning rate.
        flops: Floating-point operations of the cell alone per training image, forward and backward.
        history: `train` and `val` metrics of each epoch so far.
        best_epoch: The epoch with the best validation score so far, counted from 0.
        select_by: The validation metric that selects.
        correct: Whether each validation image is classified correctly at the best epoch, shape (images,).
        log_likelihood: Log of the probability of the true class at the best epoch, shape (images,).
    """

    key: str
    scope: str
    policy: str
    lr: float
    flops: int
    history: Sequence[Mapping[str, Metrics]]
    best_epoch: int
    select_by: str
    correct: np.ndarray
    log_likelihood: np.ndarray

    @property
    def is_block(self) -> bool:
        """Whether the scope is a single block."""
        return self.scope.isdigit()

    def merit(self, judge: Judge) -> Score:
        """Return how good the cell is so far: higher is better."""
        if judge == "train_loss":
            # the mean orders cells of equal length as the sum does, and does not favour those that stopped early
            return -fmean(epoch["train"]["loss"] for epoch in self.history), 0.0
        by = self.select_by if judge == "select_by" else judge
        return max(selection_score(epoch["val"], by) for epoch in self.history)


class Trials(Protocol):
    """What a search may ask while its rounds run."""

    def score(self, scope: str) -> Score | None:
        """Return the validation score of a scope at its best learning rate; None if it has not finished."""

    def ranking(self, score: str) -> Mapping[str, float]:
        """Return a score of each single block before any training, higher is better; see `blockwise.ranking`."""


class Search(Protocol):
    """Chooses what to train. Both methods must depend on nothing but their arguments, so that a run can resume."""

    def rounds(self, scopes: Sequence[str], trials: Trials, /) -> Iterator[Sequence[str]]:
        """Yield the scopes to train, one round after another; a round begins when the one before has finished.

        Args:
            scopes: The scopes that were asked for.
            trials: What the rounds so far have found.
        """

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int, /) -> Iterable[str]:
        """Return the keys of the cells to stop, after each epoch but the last.

        Args:
            candidates: The cells that go on or have stopped early, all of one policy.
            epoch: Number of epochs so far.
            max_epochs: Number of epochs of a whole training run.
        """


@dataclass(frozen=True)
class Exhaustive:
    """Trains every scope to its end."""

    def rounds(self, scopes: Sequence[str], trials: Trials) -> Iterator[Sequence[str]]:
        """Yield all scopes at once."""
        del trials
        yield scopes

    def stop(self, candidates: Sequence[Candidate], epoch: int, max_epochs: int) -> Iterable[str]:
        """Stop no cell."""
        del candidates, epoch, max_epochs
        return ()


def stops_cells(search: Search) -> bool:
    """Return whether a search stops cells before their last epoch."""
    return getattr(type(search), "stop", None) is not Exhaustive.stop


def by_scope(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Group cells by scope: those of a group differ in their learning rate."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.scope, []).append(candidate)
    return list(groups.values())


def best_first(candidates: Iterable[Candidate], judge: Judge) -> list[Candidate]:
    """Sort cells, the best first; of equals, the one nearest to the head, then that of the smaller rate."""
    return sorted(
        candidates,
        key=lambda c: (c.merit(judge), int(c.scope) if c.is_block else -1, -c.lr),
        reverse=True,
    )


def check_judge(name: str, value: object) -> None:
    """Check what cells are judged by.

    Raises:
        InputError: There is no such metric.
    """
    if value not in JUDGES:
        raise InputError(f"{name}={value} is unknown: choose {', '.join(JUDGES)}")
