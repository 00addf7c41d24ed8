"""Compare rules that choose a block, on the sweeps of `experiments/evidence`.

    python -m experiments.selection.rules

A rule sees validation predictions and histories alone. Its regret is how far the chosen block is below the best block
on test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from experiments.evidence.analysis.search import Replay
from experiments.evidence.arrays import VAL_LOSS, VAL_TOP1, Cells, read

from blockwise.analysis.uncertainty.confidence import Confidence, from_scores
from blockwise.search import Halving


def best(cells: Cells, score: np.ndarray) -> int:
    """Return the cell of the block with the highest score; on a tie, the one nearest to the head."""
    found = cells.best(cells.blocks, score)
    assert found is not None  # blocks are those of cells that did not diverge
    return found


def at_rates(cells: Cells, of: str) -> list[int]:
    """Return the cell of each block at the rate with the highest mean of some values over images."""
    if of == "correct":
        return cells.at_best_rates
    return [cells.of(block, getattr(cells, of).mean(1)) for block in cells.blocks]


def confidence(cells: Cells, of: str = "correct", *, smooth: bool = False) -> Confidence:
    """Return the probability that each block is the best one, by the mean of some values over images."""
    return from_scores(cells.blocks, [getattr(cells, of)[at_rates(cells, of)].astype(float).T], smooth=smooth)


def likeliest(cells: Cells) -> int:
    """Return the cell of the block with the highest probability of being the best."""
    return cells.of(next(iter(confidence(cells).probability)))


def late_epochs(cells: Cells) -> int:
    """Return the block with the highest mean accuracy over the second half of the epochs: less noise per block."""
    return best(cells, cells.history[:, cells.epochs // 2 :, VAL_TOP1].mean(1))


def late_loss(cells: Cells) -> int:
    """Return the block with the lowest mean loss over the second half of the epochs."""
    return best(cells, -cells.history[:, cells.epochs // 2 :, VAL_LOSS].mean(1))


def smoothed(cells: Cells) -> int:
    """Return the block whose accuracy is highest after half of it is taken from its neighbours (weights 1, 2, 1)."""
    padded = np.pad(cells.score[cells.at_best_rates], 1, mode="edge")
    return cells.at_best_rates[int(np.argmax(np.convolve(padded, [0.25, 0.5, 0.25], "valid")))]


def over_depth(cells: Cells, of: str = "correct") -> int:
    """Return the block that is expected to be best if scores are a smooth function of depth (`table --smooth`)."""
    found = confidence(cells, of, smooth=True).expected_best
    return at_rates(cells, of)[cells.blocks.index(found)]


def all_rates(cells: Cells) -> int:
    """Return the block with the highest mean accuracy over all rates but the worst: a choice of rates is noisy too."""

    def of(block: str) -> float:
        return float(np.sort(cells.score[cells.scope == block])[1:].mean())

    return cells.of(max(cells.blocks, key=of))


def halving(cells: Cells) -> int:
    """Return the block that `search=halving` leaves with the highest accuracy."""
    return Replay(cells, Halving(), ["head", *cells.blocks, "full"]).chosen(cells.score)


RULES: Mapping[str, Callable[[Cells], int]] = {
    "validation accuracy": lambda cells: best(cells, cells.correct.mean(1)),
    "accuracy, ties by loss (default)": lambda cells: cells.chosen,
    "validation loss": lambda cells: best(cells, cells.likelihood.mean(1)),
    "probability of the true class": lambda cells: best(cells, cells.probability.mean(1)),
    "likeliest to be the best": likeliest,
    "mean accuracy of the second half of epochs": late_epochs,
    "mean loss of the second half of epochs": late_loss,
    "accuracy, smoothed over depth": smoothed,
    "accuracy, Gaussian process over depth": over_depth,
    "loss, Gaussian process over depth": lambda cells: over_depth(cells, "likelihood"),
    "probability, Gaussian process over depth": lambda cells: over_depth(cells, "probability"),
    "accuracy, mean of the better rates": all_rates,
    "search=halving, accuracy": halving,
    "always the last block": lambda cells: cells.of(cells.blocks[-1]),
    "head alone": lambda cells: cells.of("head"),
    "full": lambda cells: cells.of("full"),
}


def main() -> None:
    """Print a table per file, and one of all files without folds."""
    sweeps = [cells for cells in read([Path(word) for word in sys.argv[1:]]) if cells.select_by == "top1"]
    names = sorted({cells.data for cells in sweeps})
    for name in names:
        show(name, [cells for cells in sweeps if cells.data == name])
    show("all without folds", [cells for cells in sweeps if not cells.folds])


def show(name: str, sweeps: Sequence[Cells]) -> None:
    """Print the table of some sweeps."""
    print(f"\n{name}: {len(sweeps)} sweeps\n\n| rule | test | regret, mean (worst) | below the head |")
    print("| --- | --- | --- | --- |")
    for rule_name, rule in RULES.items():
        chosen = [rule(cells) for cells in sweeps]
        test = [100 * float(cells.test[cell]) for cells, cell in zip(sweeps, chosen, strict=True)]
        regret = [cells.regret(cell) for cells, cell in zip(sweeps, chosen, strict=True)]
        below = sum(cells.test[cell] < cells.test[cells.of("head")] for cells, cell in zip(sweeps, chosen, strict=True))
        print(f"| {rule_name} | {fmean(test):.1f} | {fmean(regret):.2f} ({max(regret):.1f}) | {below} |")
    print()
    for of, by in (("correct", "accuracy"), ("probability", "probability")):
        sets = [confidence(cells, of).scopes for cells in sweeps]
        tops = [max(at_rates(cells, of), key=lambda cell, own=cells: own.test[cell]) for cells in sweeps]
        found = sum(cells.scope[top] in scopes for cells, top, scopes in zip(sweeps, tops, sets, strict=True))
        size = fmean(map(len, sets))
        print(f"The 90 % set by {by} has the best block in {found} of {len(sets)}, with {size:.1f} blocks.")


if __name__ == "__main__":
    main()
