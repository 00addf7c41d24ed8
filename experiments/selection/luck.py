"""How small can the regret be? Part of what a block reaches in one run is luck: of the split, and of training.

    python -m experiments.selection.luck

Compares rules with an oracle that knows the test accuracies of the same network on the other splits, thousands of
images, and takes the block with the highest mean. Regret is how far the chosen block is below the best one: on test
in the same run, and in the mean over splits. Only networks with several splits count. "All splits" chooses one block by
the mean of its validation scores over all splits of a network, as `seed=0,1` does: that costs one sweep per split.
The oracle knows part of the mean over splits, so its regret there is a bound: no choice on one split can be expected to
have less. Images that validate in one split may test in another: the choice over all splits knows a little of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from experiments.evidence.arrays import Cells, pairs, read
from experiments.selection.rules import RULES

# what each image of a split adds to a cell's score
POOLED = {"accuracy, all splits": "correct", "probability, all splits": "probability"}


def main() -> None:
    """Print a table per file with several splits, and one of all without folds."""
    networks = [own for own in pairs(read()).values() if len(own) > 1]
    for data in dict.fromkeys(own[0].data for own in networks):
        show(data, [own for own in networks if own[0].data == data])
    one_split = [own for own in networks if not own[0].folds and own[0].select_by == "top1"]
    show("all without folds, by accuracy", one_split)


def show(name: str, networks: Sequence[Sequence[Cells]]) -> None:
    """Print the regrets of each rule, over the splits of some networks."""
    regrets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for own in networks:
        for rule, of_rule in regrets_of(own).items():
            regrets[rule] += of_rule
    print(f"\n{name}: {len(networks)} networks, {sum(map(len, networks))} sweeps\n")
    print("| rule | regret in the same run | regret in the mean over splits |\n| --- | --- | --- |")
    for rule, of_rule in regrets.items():
        same, mean = zip(*of_rule, strict=True)
        print(f"| {rule} | {fmean(same):.2f} | {fmean(mean):.2f} |")


def regrets_of(splits: Sequence[Cells]) -> Mapping[str, list[tuple[float, float]]]:
    """Return both regrets of each rule on each split of a network, in points."""
    tests = [{str(scope): 100 * float(one.test[one.of(str(scope))]) for scope in set(one.scope)} for one in splits]
    blocks = [block for block in splits[0].blocks if all(block in test for test in tests)]
    mean = {scope: fmean(test[scope] for test in tests if scope in test) for scope in tests[0]}
    best = max(mean[block] for block in blocks)

    def both(test: Mapping[str, float], scope: str) -> tuple[float, float]:
        return max(test[block] for block in blocks) - test[scope], best - mean[scope]

    pooled = {name: best_over(splits, blocks, of) for name, of in POOLED.items()}
    found = {
        name: [] for name in ("a block at random", *RULES, *POOLED, "oracle: the other splits", "best in the mean")
    }
    for index, (one, test) in enumerate(zip(splits, tests, strict=True)):
        others = [other for place, other in enumerate(tests) if place != index]
        found["a block at random"].append(tuple(np.mean([both(test, block) for block in blocks], axis=0)))
        for name, rule in RULES.items():
            found[name].append(both(test, str(one.scope[rule(one)[0]])))
        for name, block in pooled.items():
            found[name].append(both(test, block))
        known = max(blocks, key=lambda block: fmean(other[block] for other in others))
        found["oracle: the other splits"].append(both(test, known))
        found["best in the mean"].append(both(test, max(blocks, key=mean.__getitem__)))
    return found


def best_over(splits: Sequence[Cells], blocks: Sequence[str], of: str) -> str:
    """Return the block with the highest mean score over splits, at its best rate on each; of equals, the last one."""
    means = [getattr(one, of).mean(1) for one in splits]
    scores = {block: fmean(m[one.of(block, m)] for one, m in zip(splits, means, strict=True)) for block in blocks}
    return max(reversed(blocks), key=scores.__getitem__)


if __name__ == "__main__":
    main()
