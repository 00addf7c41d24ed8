"""What would each search have found, and at what cost? Replays searches on the histories of exhaustive sweeps.

    python -m experiments.evidence.analysis.search

A search sees what it would have seen, epoch by epoch, and its survivors are those of the exhaustive sweep. Regrets are
means over sweeps; intervals, of 95 %, are those of the mean over pairs of network and data set. Costs are seconds of
cells, in proportion to the epochs that they trained, as a share of the exhaustive sweep's, and as a multiple of those
of `full` at all of its rates. What cells share, at most 7 % of a sweep's seconds, is divided among them: in a search
that stops cells it does not shrink as much as that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from experiments.evidence.arrays import PROBABILITY, Cells, later, on, pairs, read_evidence
from experiments.evidence.rebuild import network_of

from blockwise.analysis.statistics import interval
from blockwise.backbone.flops import cell_flops
from blockwise.results.record import Score
from blockwise.search import Exhaustive, FirstEpoch, Halving, Racing, Search, TopDown

SEARCHES: Mapping[str, Search] = {
    "exhaustive": Exhaustive(),
    **{
        f"racing, level {level}, from {first}": Racing(level=level, min_epochs=first)
        for level in (0.01, 0.05, 0.2)
        for first in (1, 2, 3)
    },
    **{
        f"halving, factor {factor}, from {first}, {judge}": Halving(factor=factor, min_epochs=first, judge=judge)
        for factor in (2, 3)
        for first in (1, 2, 3)
        for judge in ("select_by", "loss", "train_loss")
    },
    **{
        f"first_epoch, keep {keep}, {judge}": FirstEpoch(keep=keep, judge=judge)
        for keep in (1, 2, 3)
        for judge in ("select_by", "loss", "train_loss")
    },
    **{f"topdown, patience {patience}": TopDown(patience=patience) for patience in (1, 2, 3)},
}
# for sweeps that kept the probability of the true class after each epoch
BY_PROBABILITY: Mapping[str, Search] = {
    "exhaustive": SEARCHES["exhaustive"],
    **{
        f"halving, factor 2, from {first}, {judge}": Halving(factor=2, min_epochs=first, judge=judge)
        for first in (1, 2, 3)
        for judge in ("select_by", "loss", "probability")
    },
    **{
        f"first_epoch, keep 3, {judge}": FirstEpoch(keep=3, judge=judge)
        for judge in ("select_by", "loss", "probability")
    },
}


class Replay:
    """Replays a search on the cells of one sweep.

    Attributes:
        cells: The cells.
        epochs: Number of epochs that each cell trained in the search.
    """

    def __init__(self, cells: Cells, search: Search, scopes: Sequence[str]) -> None:
        self.cells = cells
        self.epochs = np.zeros(len(cells.scope), int)
        for asked in search.rounds(scopes, self):
            self._train(search, [i for i, scope in enumerate(cells.scope) if scope in asked])

    def _train(self, search: Search, active: list[int]) -> None:
        flops = flops_of(self.cells.model)
        for epoch in range(1, self.cells.epochs + 1):
            self.epochs[active] += 1
            if epoch < self.cells.epochs:
                candidates = {i: self.cells.candidate(i, epoch, flops[self.cells.scope[i]]) for i in active}
                stopped = set(search.stop(list(candidates.values()), epoch, self.cells.epochs))
                active = [i for i, candidate in candidates.items() if candidate.key not in stopped]

    def finished(self, scope: str) -> list[int]:
        """Return the cells of a scope that trained to their end."""
        return [i for i in np.flatnonzero(self.cells.scope == scope) if self.epochs[i] == self.cells.epochs]

    def score(self, scope: str) -> Score | None:
        """Return the validation score of a scope at its best learning rate."""
        found = [float(self.cells.score[i]) for i in self.finished(scope)]
        return (max(found), 0.0) if found else None

    def ranking(self, score: str) -> Mapping[str, float]:
        """Refuse: scores are not in the arrays."""
        raise NotImplementedError(score)

    def chosen(self, score: np.ndarray) -> int:
        """Return the block with the highest score among those that trained to their end."""
        left = [i for block in self.cells.blocks for i in self.finished(block)]
        return max(left, key=lambda i: (score[i], int(self.cells.scope[i])))

    def cost(self, scopes: Iterable[str]) -> float:
        """Return the cost of some scopes as a share of training them all to their end."""
        own = np.isin(self.cells.scope, list(scopes))
        seconds = self.cells.seconds[own]
        return float((seconds * self.epochs[own] / self.cells.epochs).sum() / seconds.sum())


@cache
def flops_of(model: str) -> dict[str, int]:
    """Return the operations of each scope's cell per image."""
    partition = network_of(model)[0]
    blocks = range(len(partition))
    scopes: dict[str, Sequence[int]] = {"head": (), "full": tuple(blocks), **{str(block): (block,) for block in blocks}}
    return {scope: cell_flops(partition, own, own) for scope, own in scopes.items()}


def main() -> None:
    """Print a table per data set, one of all, one of later sweeps, and one of those that kept probabilities."""
    sweeps = read_evidence([Path(word) for word in sys.argv[1:]])
    for name in (*sorted({cells.data for cells in sweeps}), "all"):
        show(name, on(name, sweeps), SEARCHES)
    show("those after `halving` was set to judge by the loss", later("loss", sweeps), SEARCHES)
    kept = [cells for cells in sweeps if cells.history.shape[2] > PROBABILITY]
    if kept:
        show("those that kept the probability of the true class", kept, BY_PROBABILITY)


def show(name: str, sweeps: Sequence[Cells], searches: Mapping[str, Search]) -> None:
    """Print regret and cost of each search."""
    print(f"\n{name}: {len(sweeps)} sweeps\n")
    costs = ("share of seconds: blocks", "with head and full", "in fits of `full`")
    print(f"| search | regret to exhaustive (interval) | worst | {' | '.join(costs)} |")
    print("| --- | --- | --- | --- | --- | --- |")
    for search_name, search in searches.items():
        regrets: dict[str, float] = {}
        blocks, everything, fits = [], [], []
        for cells in sweeps:
            scopes = ["head", *cells.blocks, "full"]
            replay = Replay(cells, search, scopes)
            regrets[cells.name] = 100 * float(cells.test[cells.chosen] - cells.test[replay.chosen(cells.score)])
            blocks.append(100 * replay.cost(cells.blocks))
            everything.append(100 * replay.cost(scopes))
            fits.append(replay.cost(scopes) * float(cells.seconds.sum() / cells.seconds[cells.scope == "full"].sum()))
        low, high = interval([fmean(regrets[cells.name] for cells in own) for own in pairs(sweeps).values()]) or (0, 0)
        mean, worst = fmean(regrets.values()), max(regrets.values())
        print(
            f"| {search_name} | {mean:.2f} ({low:.2f} to {high:.2f}) | {worst:.1f} | {fmean(blocks):.0f} % | "
            f"{fmean(everything):.0f} % | {fmean(fits):.1f} |"
        )


if __name__ == "__main__":
    main()
