"""Compare rules that choose a block, on the predictions that `measure.py` has collected.

    python experiments/selection/rules.py results/*.npz

A rule sees validation predictions alone. Its regret is how far the chosen block is below the best block on test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from blockwise.analysis.uncertainty.confidence import Confidence, from_scores

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cells:
    """The cells of one sweep.

    Attributes:
        scope: Scope of each cell.
        lr: Learning rate of each cell.
        test: Test accuracy of each cell.
        correct: Whether a cell classifies a validation image correctly, shape (cells, images).
        loss: Minus the log-likelihood of the true class, shape (cells, images).
    """

    scope: np.ndarray
    lr: np.ndarray
    test: np.ndarray
    correct: np.ndarray
    loss: np.ndarray

    @property
    def blocks(self) -> list[str]:
        """The single blocks, input side first."""
        return sorted({scope for scope in self.scope if scope.isdigit()}, key=int)

    def of(self, scope: str, score: np.ndarray) -> int:
        """Return the cell of a scope at the rate with the highest score."""
        own = np.flatnonzero(self.scope == scope)
        return int(own[np.argmax(score[own])])


def read(path: Path) -> dict[str, Cells]:
    """Return the sweeps of a file, by backbone and seed."""
    arrays = np.load(path)
    sweeps = {}
    for key in sorted({name.rpartition("/")[0] for name in arrays}):
        part = {name: arrays[f"{key}/{name}"] for name in ("scope", "lr", "test", "correct", "likelihood", "images")}
        correct = np.unpackbits(part["correct"], axis=1)[:, : int(part["images"][0])].astype(float)
        loss = -part["likelihood"].astype(float)
        sweeps[key] = Cells(part["scope"], part["lr"], part["test"], correct, loss)
    return sweeps


def accuracy(cells: Cells) -> np.ndarray:
    """Return the validation accuracy of each cell."""
    return cells.correct.mean(1)


def accuracy_then_loss(cells: Cells) -> np.ndarray:
    """Return the validation accuracy of each cell; the loss decides between equals alone."""
    return cells.correct.mean(1) - 1e-6 * cells.loss.mean(1)


def minus_loss(cells: Cells) -> np.ndarray:
    """Return minus the validation loss of each cell."""
    return -cells.loss.mean(1)


def best(cells: Cells, score: np.ndarray) -> int:
    """Return the cell of the block with the highest score; on a tie, the one nearest to the head."""
    return max((cells.of(block, score) for block in cells.blocks), key=lambda cell: (score[cell], cells.scope[cell]))


def likeliest(cells: Cells) -> int:
    """Return the cell of the block with the highest probability of being the best."""
    scope = next(iter(confidence(cells).probability))
    return cells.of(scope, accuracy_then_loss(cells))


def smoothed(cells: Cells) -> int:
    """Return the block whose accuracy is highest after half of it is taken from its neighbours (weights 1, 2, 1)."""
    score = accuracy_then_loss(cells)
    chosen = [cells.of(block, score) for block in cells.blocks]
    padded = np.pad(score[chosen], 1, mode="edge")
    return chosen[int(np.argmax(np.convolve(padded, [0.25, 0.5, 0.25], "valid")))]


def confidence(cells: Cells) -> Confidence:
    """Return the probability that each block is the best one."""
    score = accuracy_then_loss(cells)
    chosen = [cells.of(block, score) for block in cells.blocks]
    return from_scores(cells.blocks, [cells.correct[chosen].T])


RULES: Mapping[str, Callable[[Cells], int]] = {
    "validation accuracy": lambda cells: best(cells, accuracy(cells)),
    "accuracy, ties by loss (default)": lambda cells: best(cells, accuracy_then_loss(cells)),
    "validation loss": lambda cells: best(cells, minus_loss(cells)),
    "likeliest to be the best": likeliest,
    "accuracy, smoothed over depth": smoothed,
    "always the last block": lambda cells: cells.of(cells.blocks[-1], accuracy_then_loss(cells)),
    "head alone": lambda cells: cells.of("head", accuracy_then_loss(cells)),
    "full": lambda cells: cells.of("full", accuracy_then_loss(cells)),
}


def main() -> None:
    """Print a table per file."""
    for path in map(Path, sys.argv[1:] or sorted((HERE / "results").glob("*.npz"))):
        sweeps = read(path)
        print(f"\n{path.stem}: {len(sweeps)} sweeps\n\n| rule | test | regret, mean (worst) | below the head |")
        print("| --- | --- | --- | --- |")
        for name, rule in RULES.items():
            print(f"| {name} | {' | '.join(summary(sweeps, rule))} |")
        sets = [confidence(cells).scopes for cells in sweeps.values()]
        found = sum(best_on_test(cells) in scopes for cells, scopes in zip(sweeps.values(), sets, strict=True))
        blocks = fmean(map(len, sets))
        print(f"\nThe 90 % set has the best block in {found} of {len(sets)}, with {blocks:.1f} blocks.")


def summary(sweeps: Mapping[str, Cells], rule: Callable[[Cells], int]) -> list[str]:
    """Return the figures of a rule, in points."""
    test = [100 * float(cells.test[rule(cells)]) for cells in sweeps.values()]
    top = [100 * max(float(cells.test[c]) for c in at_best_rates(cells)) for cells in sweeps.values()]
    head = [100 * float(cells.test[RULES["head alone"](cells)]) for cells in sweeps.values()]
    regret = [best - own for best, own in zip(top, test, strict=True)]
    below = sum(own < other for own, other in zip(test, head, strict=True))
    return [f"{fmean(test):.1f}", f"{fmean(regret):.2f} ({max(regret):.1f})", f"{below}"]


def at_best_rates(cells: Cells) -> list[int]:
    """Return the cell of each block at the rate that validation chooses."""
    return [cells.of(block, accuracy_then_loss(cells)) for block in cells.blocks]


def best_on_test(cells: Cells) -> str:
    """Return the best block on test."""
    return str(cells.scope[max(at_best_rates(cells), key=lambda cell: cells.test[cell])])


if __name__ == "__main__":
    main()
