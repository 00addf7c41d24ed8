"""Compare rules that choose a block, on the sweeps of `experiments/evidence`.

    python -m experiments.selection.rules

A rule sees validation predictions and histories alone. Its regret is how far the chosen block is below the best block
on test, each block at the rate that the rule's metric chooses. Since rates differ, compare the test accuracies as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from experiments.evidence.analysis.search import Replay
from experiments.evidence.arrays import VAL_LOSS, VAL_TOP1, Cells, later, pairs, read
from scipy.stats import wilcoxon

from blockwise.analysis.uncertainty.confidence import Confidence, from_scores
from blockwise.search import Halving

# the cell that a rule chooses, and the cell of each block at the rate that its metric chooses
Choice = tuple[int, list[int]]


def best(cells: Cells, score: np.ndarray) -> Choice:
    """Return the block with the highest score; on a tie, the one nearest to the head."""
    blocks = [cells.of(block, score) for block in cells.blocks]
    return max(reversed(blocks), key=score.__getitem__), blocks


def at_rates(cells: Cells, of: str) -> list[int]:
    """Return the cell of each block at the rate with the highest mean of some values over images."""
    return cells.at_best_rates if of == "correct" else best(cells, getattr(cells, of).mean(1))[1]


def confidence(cells: Cells, of: str = "correct", *, smooth: bool = False) -> Confidence:
    """Return the probability that each block is the best one, by the mean of some values over images."""
    return from_scores(cells.blocks, [getattr(cells, of)[at_rates(cells, of)].astype(float).T], smooth=smooth)


def only(cells: Cells, scope: str) -> Choice:
    """Return a scope at its best rate by accuracy."""
    return cells.of(scope), cells.at_best_rates


def likeliest(cells: Cells) -> Choice:
    """Return the block with the highest probability of being the best."""
    return only(cells, next(iter(confidence(cells).probability)))


def late_epochs(cells: Cells) -> Choice:
    """Return the block with the highest mean accuracy over the second half of the epochs: less noise per block."""
    return best(cells, cells.history[:, cells.epochs // 2 :, VAL_TOP1].mean(1))


def late_loss(cells: Cells) -> Choice:
    """Return the block with the lowest mean loss over the second half of the epochs."""
    return best(cells, -cells.history[:, cells.epochs // 2 :, VAL_LOSS].mean(1))


def smoothed(cells: Cells) -> Choice:
    """Return the block whose accuracy is highest after half of it is taken from its neighbours (weights 1, 2, 1)."""
    padded = np.pad(cells.score[cells.at_best_rates], 1, mode="edge")
    return only(cells, cells.blocks[int(np.argmax(np.convolve(padded, [0.25, 0.5, 0.25], "valid")))])


def over_depth(cells: Cells, of: str = "correct") -> Choice:
    """Return the block that is expected to be best if scores are a smooth function of depth (`table --smooth`)."""
    found, blocks = confidence(cells, of, smooth=True).expected_best, at_rates(cells, of)
    return blocks[cells.blocks.index(found)], blocks


def all_rates(cells: Cells) -> Choice:
    """Return the block with the highest mean accuracy over all rates but the worst: a choice of rates is noisy too."""

    def of(block: str) -> float:
        return float(np.sort(cells.score[cells.scope == block])[1:].mean())

    return only(cells, max(cells.blocks, key=of))


def halving(cells: Cells) -> Choice:
    """Return the block that `search=halving` leaves with the highest accuracy."""
    return Replay(cells, Halving(), ["head", *cells.blocks, "full"]).chosen(cells.score), cells.at_best_rates


DEFAULT = "accuracy, ties by loss (default)"
RULES: Mapping[str, Callable[[Cells], Choice]] = {
    "validation accuracy": lambda cells: best(cells, cells.correct.mean(1)),
    DEFAULT: lambda cells: (cells.chosen, cells.at_best_rates),
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
    "search=halving, which judges by the loss": halving,
    "always the last block": lambda cells: only(cells, cells.blocks[-1]),
    "head alone": lambda cells: only(cells, "head"),
    "head alone, rate by probability": lambda cells: (cells.of("head", cells.probability.mean(1)), cells.at_best_rates),
    "full": lambda cells: only(cells, "full"),
    "full, rate by probability": lambda cells: (cells.of("full", cells.probability.mean(1)), cells.at_best_rates),
}


def main() -> None:
    """Print a table per file, one of all files without folds, and one of those that tested a choice by probability."""
    sweeps = [cells for cells in read([Path(word) for word in sys.argv[1:]]) if cells.select_by == "top1"]
    names = sorted({cells.data for cells in sweeps})
    for name in names:
        show(name, [cells for cells in sweeps if cells.data == name])
    one_split = [cells for cells in sweeps if not cells.folds]
    show("all without folds", one_split)
    show(
        "of these, the ones that came after probability had been found to choose better",
        later("probability", one_split),
    )


def show(name: str, sweeps: Sequence[Cells]) -> None:
    """Print the table of some sweeps."""
    print(f"\n{name}: {len(sweeps)} sweeps\n")
    print("| rule | test | over the default (better, worse; p over pairs) | regret, mean (worst) | below the head |")
    print("| --- | --- | --- | --- | --- |")
    for rule_name, rule in RULES.items():
        chosen = [rule(cells) for cells in sweeps]
        test = [100 * float(cells.test[cell]) for cells, (cell, _) in zip(sweeps, chosen, strict=True)]
        regret = [cells.regret(*choice) for cells, choice in zip(sweeps, chosen, strict=True)]
        below = sum(cells.test[c] < cells.test[cells.of("head")] for cells, (c, _) in zip(sweeps, chosen, strict=True))
        gain = "" if rule_name == DEFAULT else compared(sweeps, test)
        print(f"| {rule_name} | {fmean(test):.1f} | {gain} | {fmean(regret):.2f} ({max(regret):.1f}) | {below} |")
    print()
    for of, by in (("correct", "accuracy"), ("probability", "probability")):
        sets = [confidence(cells, of).scopes for cells in sweeps]
        tops = [max(at_rates(cells, of), key=lambda cell, own=cells: own.test[cell]) for cells in sweeps]
        found = sum(cells.scope[top] in scopes for cells, top, scopes in zip(sweeps, tops, sets, strict=True))
        size = fmean(map(len, sets))
        print(f"The 90 % set by {by} has the best block in {found} of {len(sets)}, with {size:.1f} blocks.")


def compared(sweeps: Sequence[Cells], test: Sequence[float]) -> str:
    """Return the mean difference to what the default reaches on test, how often it is positive or negative, and p.

    p is that of Wilcoxon's signed-rank test of the means of each pair of network and data set, uncorrected.
    """
    gains = {
        cells.name: value - 100 * float(cells.test[cells.chosen]) for cells, value in zip(sweeps, test, strict=True)
    }
    of_pairs = [fmean(gains[cells.name] for cells in own) for own in pairs(sweeps).values()]
    p = float(wilcoxon(of_pairs).pvalue) if any(of_pairs) else 1.0
    better, worse = sum(gain > 0 for gain in gains.values()), sum(gain < 0 for gain in gains.values())
    return f"{fmean(gains.values()):+.2f} ({better}, {worse}; p = {p:.2g})"


if __name__ == "__main__":
    main()
