"""Read the sweeps that `sweeps.py` has collected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from blockwise.search import Candidate

RESULTS = Path(__file__).parent / "results"
EXPLORED = Path(__file__).with_name("explored.json")
# the sweeps of the evidence; the others are about the number of images, and about folds
EVIDENCE = ("digits-40", "flowers5-40", "flowers36-6", "caltech101-6")
# columns of a history, as in `sweeps.py`; the first sweeps have no probability
TRAIN_LOSS, TRAIN_TOP1, VAL_LOSS, VAL_TOP1, PROBABILITY = range(5)


@dataclass(frozen=True)
class Cells:
    """The cells of one sweep that did not diverge.

    Attributes:
        data: Name of the file: data set, labelled images per class, folds, metric that selects if it is not accuracy.
        model: Name of the backbone.
        seed: Seed.
        scope: Scope of each cell.
        lr: Learning rate of each cell.
        seconds: Seconds that each cell took, its share of the common time included, without pauses.
        best_epoch: Epoch with the best validation accuracy, counted from 0.
        test: Test accuracy of each cell.
        history: Metrics of each epoch, shape (cells, epochs, 4 or 5).
        correct: Whether a cell classifies a validation image correctly, shape (cells, images).
        so_far: The same after each epoch but the last, at the best epoch so far, shape (epochs - 1, cells, images).
        test_correct: Whether a cell classifies a test image correctly, shape (cells, images).
        likelihood: Log-likelihood of the true class of each validation image, shape (cells, images).
    """

    data: str
    model: str
    seed: int
    scope: np.ndarray
    lr: np.ndarray
    seconds: np.ndarray
    best_epoch: np.ndarray
    test: np.ndarray
    history: np.ndarray
    correct: np.ndarray
    so_far: np.ndarray | None
    test_correct: np.ndarray
    likelihood: np.ndarray

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return f"{self.data}/{self.model}/{self.seed}"

    @cached_property
    def blocks(self) -> list[str]:
        """The single blocks, input side first."""
        return sorted({scope for scope in self.scope if scope.isdigit()}, key=int)

    @property
    def folds(self) -> str:
        """Number of folds; empty with one split."""
        return self.data.partition("-by-")[0].partition("-folds")[2]

    @property
    def select_by(self) -> str:
        """The metric that selects."""
        return self.data.partition("-by-")[2] or "top1"

    @property
    def probability(self) -> np.ndarray:
        """Probability of the true class of each validation image, shape (cells, images)."""
        return np.exp(self.likelihood)

    @cached_property
    def score(self) -> np.ndarray:
        """What selects: the metric of `select_by`; the loss decides between equals alone."""
        values = self.probability if self.select_by == "probability" else self.correct
        return values.mean(1) + 1e-6 * self.likelihood.mean(1)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.history.shape[1]

    def of(self, scope: str, score: np.ndarray | None = None) -> int:
        """Return the cell of a scope at the rate with the highest score, by default that of `score`."""
        own = np.flatnonzero(self.scope == scope)
        return int(own[np.argmax((self.score if score is None else score)[own])])

    @cached_property
    def at_best_rates(self) -> list[int]:
        """The cell of each block at the rate that validation chooses."""
        return [self.of(block) for block in self.blocks]

    @cached_property
    def chosen(self) -> int:
        """The block that is chosen; of equals, the one nearest to the head."""
        found = self.best(self.blocks)
        assert found is not None  # some block trains to its end in every sweep
        return found

    def best(self, scopes: Sequence[str], score: np.ndarray | None = None) -> int | None:
        """Return the cell of some scopes with the highest score, by default that of `score`; None if all diverged.

        Of equals, it is that of the last scope.
        """
        values = self.score if score is None else score
        own = [self.of(scope, values) for scope in scopes if scope in self.scope]
        return max(reversed(own), key=values.__getitem__, default=None)

    def with_rates(self, rates: Sequence[float]) -> Cells:
        """Return the sweep as it would be with some of its rates alone."""
        keep = np.isclose(self.lr[:, None], rates).any(1)
        so_far = None if self.so_far is None else self.so_far[:, keep]
        arrays = ("scope", "lr", "seconds", "best_epoch", "test", "history", "correct", "test_correct", "likelihood")
        return replace(self, so_far=so_far, **{name: getattr(self, name)[keep] for name in arrays})

    def regret(self, cell: int, blocks: Sequence[int] | None = None) -> float:
        """Return how far the test accuracy of a cell is below that of the best block, in points.

        Args:
            cell: The cell.
            blocks: The cell of each block, at the rate that is chosen for it; by default, that of `at_best_rates`.
        """
        return 100 * float(self.test[self.at_best_rates if blocks is None else blocks].max() - self.test[cell])

    def candidate(self, cell: int, epoch: int, flops: int) -> Candidate:
        """Return what a search sees of a cell after a number of epochs, fewer than all."""
        history = [
            {
                "train": {"loss": float(row[TRAIN_LOSS]), "top1": float(row[TRAIN_TOP1])},
                "val": dict(zip(("loss", "top1", "probability"), map(float, row[VAL_LOSS:]), strict=False)),
            }
            for row in self.history[cell, :epoch]
        ]
        correct = np.zeros(0, bool) if self.so_far is None else self.so_far[epoch - 1, cell]
        key = f"{self.scope[cell]}@{self.lr[cell]:g}"
        return Candidate(
            key,
            str(self.scope[cell]),
            "static",
            float(self.lr[cell]),
            flops,
            history,
            0,
            self.select_by,
            correct,
            np.zeros(0),
        )


def read(paths: Iterable[Path] = ()) -> Iterator[Cells]:
    """Yield the sweeps of some files, by default of all."""
    for path in paths or sorted(RESULTS.glob("*.npz")):
        arrays = np.load(path)
        for key in sorted({name.rpartition("/")[0] for name in arrays}):
            yield _cells(
                path.stem, key, {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{key}/")}
            )


def read_evidence(paths: Iterable[Path] = ()) -> list[Cells]:
    """Return the sweeps of the evidence."""
    return [cells for cells in read(paths) if cells.data in EVIDENCE]


def later(idea: str, sweeps: Iterable[Cells]) -> list[Cells]:
    """Return the sweeps that were not there yet when an idea was had: those that had been may agree with it by chance.

    The ideas are choices by `probability` and searches that judge by the `loss`; `explored.json` names their sweeps.
    """
    explored = set(json.loads(EXPLORED.read_text())[idea])
    return [cells for cells in sweeps if cells.name not in explored]


def on(data: str, sweeps: Iterable[Cells]) -> list[Cells]:
    """Return the sweeps on a data set, or all."""
    return [cells for cells in sweeps if data in ("all", cells.data)]


def pairs(sweeps: Iterable[Cells]) -> dict[tuple[str, str], list[Cells]]:
    """Return the sweeps of each pair of data set and network."""
    found: dict[tuple[str, str], list[Cells]] = {}
    for cells in sweeps:
        found.setdefault((cells.data, cells.model), []).append(cells)
    return found


def unpaused(scope: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the seconds of cells without pauses: some runs were stopped for minutes in the middle of a step.

    A cell that took more than three times as long as the median of its scope's cells takes this median.
    """
    usual = np.array([np.median(seconds[scope == one]) for one in scope], seconds.dtype)
    return np.where(seconds > 3 * usual, usual, seconds)


def _cells(data: str, key: str, part: dict[str, np.ndarray]) -> Cells:
    model, _, seed = key.rpartition("/")

    def bits(name: str, split: int = 0) -> np.ndarray:
        images = int(part["images"][split])
        return np.unpackbits(part[name], axis=-1)[..., :images].astype(bool)

    return Cells(
        data=data,
        model=model,
        seed=int(seed),
        seconds=unpaused(part["scope"], part["seconds"]),
        **{name: part[name] for name in ("scope", "lr", "best_epoch", "test", "history")},
        correct=bits("correct"),
        so_far=bits("correct_so_far") if "correct_so_far" in part else None,
        test_correct=bits("test_correct", 1),
        likelihood=part["likelihood"].astype(float),
    )
