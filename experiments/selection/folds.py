"""With few images per class: one split or folds, chosen by what, all cells or a search? On `experiments/evidence`.

    python -m experiments.selection.folds

Compares the sweeps of a backbone and a seed on one split, chosen by accuracy, with those with folds, those chosen by
the probability of the true class, and those with both. The images that are labelled, and those that test, are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

from experiments.evidence.analysis.search import Replay
from experiments.evidence.arrays import Cells, read

from blockwise.analysis.summary import SELECTED
from blockwise.search import Halving

# as `experiment=small_data` has it
SMALL_DATA = Halving(min_epochs=4, judge="select_by")
ONE_SPLIT = "one split, accuracy"
# seconds of a run over those of one split, all cells to their end: README.md, "What do folds cost?"
SECONDS = {"": 1.0, "2": 84 / 31, "5": 154 / 31}


def halved(cells: Cells, search: Halving) -> tuple[int, float]:
    """Return the cell that a search chooses, and its share of the seconds."""
    scopes = ["head", *cells.blocks, "full"]
    replay = Replay(cells, search, scopes)
    return replay.chosen(cells.score), replay.cost(scopes)


def only(cells: Cells, scope: str) -> tuple[int, float]:
    """Return the cell of a scope, and its share of the seconds of all."""
    own = cells.seconds[cells.scope == scope].sum()
    return cells.of(scope), float(own / cells.seconds.sum())


RULES: Mapping[str, Callable[[Cells], tuple[int, float]]] = {
    "exhaustive": lambda cells: (cells.chosen, 1.0),
    "halving, loss, from 1": lambda cells: halved(cells, Halving()),
    "halving, select_by, from 1": lambda cells: halved(cells, Halving(judge="select_by")),
    "halving, select_by, from 4": lambda cells: halved(cells, SMALL_DATA),
    "always the last block": lambda cells: only(cells, cells.blocks[-1]),
    "head": lambda cells: only(cells, "head"),
    "full": lambda cells: only(cells, "full"),
}


def main() -> None:
    """Print a table for each way to choose on the same images, beside one split and accuracy."""
    ways: dict[str, dict[str, dict[tuple[str, int], Cells]]] = defaultdict(lambda: defaultdict(dict))
    for cells in read():
        name, number, *_ = cells.data.split("-")
        ways[f"{name}-{number}"][way_of(cells)][cells.model, cells.seed] = cells
    for name, found in ways.items():
        for way in sorted(found.keys() - {ONE_SPLIT}):
            if not found[ONE_SPLIT].keys() & found[way].keys():  # one split has not been trained yet
                continue
            show(f"{name}, {way}", {ONE_SPLIT: found[ONE_SPLIT], way: found[way]})


def way_of(cells: Cells) -> str:
    """Return in words how a sweep chooses."""
    split = f"{cells.folds} folds" if cells.folds else "one split"
    return f"{split}, {SELECTED[cells.select_by]}"


def show(name: str, ways: Mapping[str, Mapping[tuple[str, int], Cells]]) -> None:
    """Print a row per way to choose and rule, over the sweeps that both have."""
    keys = set.intersection(*(set(found) for found in ways.values()))
    print(f"\n{name}: {len(keys)} sweeps\n")
    print("| choice | rule | test | regret, mean (worst) | below the head | cost, in sweeps of one split |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, found in ways.items():
        for rule_name, rule in RULES.items():
            test, regret, below, cost = [], [], 0, []
            for key in sorted(keys):
                cell, share = rule(cells := found[key])
                test.append(100 * float(cells.test[cell]))
                regret.append(cells.regret(cell))
                below += cells.test[cell] < cells.test[cells.of("head")]
                cost.append(SECONDS[cells.folds] * share)
            print(
                f"| {way} | {rule_name} | {fmean(test):.1f} | {fmean(regret):.2f} ({max(regret):.1f}) | "
                f"{below} | {fmean(cost):.2f} |"
            )


if __name__ == "__main__":
    main()
