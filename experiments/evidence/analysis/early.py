"""How early is the order of blocks known? Rank correlation and regret after each epoch, against the end.

python -m experiments.evidence.analysis.early
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from experiments.evidence.arrays import TRAIN_LOSS, VAL_LOSS, VAL_TOP1, Cells, on, read_evidence
from scipy.stats import kendalltau

# what is known of each cell after a number of epochs, shape (cells,); higher is better
EARLY: Mapping[str, Callable[[Cells, int], np.ndarray]] = {
    "best accuracy so far": lambda cells, epoch: cells.history[:, :epoch, VAL_TOP1].max(1),
    "accuracy": lambda cells, epoch: cells.history[:, epoch - 1, VAL_TOP1],
    "loss": lambda cells, epoch: -cells.history[:, epoch - 1, VAL_LOSS],
    "sum of training losses": lambda cells, epoch: -cells.history[:, :epoch, TRAIN_LOSS].sum(1),
}


def main() -> None:
    """Print a table per data set and one of all."""
    sweeps = read_evidence([Path(word) for word in sys.argv[1:]])
    for name in (*sorted({cells.data for cells in sweeps}), "all"):
        show(name, on(name, sweeps))


def show(name: str, sweeps: Sequence[Cells]) -> None:
    """Print the correlation with the order at the end, and the regret of stopping all but the first block."""
    epochs = min(cells.epochs for cells in sweeps)
    print(
        f"\n{name}: {len(sweeps)} sweeps; Kendall's tau-b with the test accuracy of blocks at the end / regret, points"
    )
    print("\n| after epoch | " + " | ".join(map(str, range(1, epochs + 1))) + " |")
    print("| --- | " + "--- | " * epochs)
    for what, known in EARLY.items():
        cells_of = [compare(cells, known) for cells in sweeps]
        means = [(fmean(one[e][0] for one in cells_of), fmean(one[e][1] for one in cells_of)) for e in range(epochs)]
        print(f"| {what} | " + " | ".join(f"{tau:.2f} / {regret:.1f}" for tau, regret in means) + " |")


def compare(cells: Cells, known: Callable[[Cells, int], np.ndarray]) -> list[tuple[float, float]]:
    """Return the correlation and the regret after each epoch; each block is taken at its best rate by then."""
    found = []
    test = cells.test[cells.at_best_rates]
    for epoch in range(1, cells.epochs + 1):
        values = known(cells, epoch)
        early = np.array([values[cells.of(block, values)] for block in cells.blocks])
        tau = kendalltau(early, test).statistic
        first = len(early) - 1 - int(np.argmax(early[::-1]))  # of equals, the one nearest to the head
        found.append((0.0 if np.isnan(tau) else float(tau), cells.regret(cells.at_best_rates[first])))
    return found


if __name__ == "__main__":
    main()
