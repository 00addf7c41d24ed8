"""Which block is best, and what does it gain? By block, quarter and data set, at one rate for all, and over seeds.

    python -m experiments.evidence.analysis.blocks

Blocks and rates are chosen on validation, for each seed by itself (`blockwise claims` chooses by the mean over seeds),
and accuracies are those on test. A pair of network and data set counts once: its figures are means over its seeds.
Intervals are 95 % confidence intervals of the mean over pairs by Student's t; pairs share networks and data, so the
true ones are wider. Writes `results/blocks.png` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median, stdev

import numpy as np
from experiments.evidence.arrays import EVIDENCE, RESULTS, Cells, on, pairs, read_evidence
from matplotlib.figure import Figure
from scipy.stats import kendalltau, wilcoxon
from statsmodels.stats.multitest import multipletests

from blockwise.analysis.statistics import interval

PERMUTATIONS = 1999
RATES = (0.0001, 0.0005, 0.0025)
QUARTERS = tuple(tuple(str(block) for block in range(first, first + 3)) for first in (0, 3, 6, 9))
BASELINES = ("head", "full")
Value = Callable[[Cells], float | None]


def main() -> None:
    """Print the tables and draw the figure."""
    sweeps = read_evidence()
    print(f"{len(sweeps)} sweeps, {len(pairs(sweeps))} pairs of network and data set; accuracy in %, gains in points")
    show_blocks(sweeps)
    show_quarters(sweeps)
    show_data(sweeps)
    show_tests(sweeps)
    show_order(sweeps)
    show_rates(sweeps)
    show_seeds(sweeps)
    draw(sweeps).savefig(RESULTS / "blocks.png", dpi=120, metadata={"Software": None})


def show_blocks(sweeps: Sequence[Cells]) -> None:
    """Print the gain of each block over the head, by data set."""
    start("Gain of each block over the head", "block", *EVIDENCE, "all")
    for scope in (*sweeps[0].blocks, "full"):
        gains = [means(on(data, sweeps), over("head", scope)) for data in EVIDENCE]
        print(row(scope, *(f"{fmean(one):+.1f}" for one in gains), estimate(means(sweeps, over("head", scope)))))


def show_quarters(sweeps: Sequence[Cells]) -> None:
    """Print the gain of the block of each quarter that validation chooses."""
    start("Gain of the best block of each quarter", "quarter", *(f"over {name}" for name in BASELINES))
    for number, blocks in enumerate(QUARTERS, start=1):
        print(row(number, *(estimate(means(sweeps, over(name, *blocks))) for name in BASELINES)))


def show_data(sweeps: Sequence[Cells]) -> None:
    """Print accuracies, gains and the depth of the best block by data set."""
    gains = [f"best block over {name}" for name in BASELINES]
    depths = "depth of the best block: mean, lowest, highest"
    start("By data set", "data", "sweeps", "pairs", *BASELINES, "best block", *gains, depths)
    for data in (*EVIDENCE, "all"):
        own = on(data, sweeps)
        blocks = own[0].blocks
        depth = [(int(cells.scope[cells.chosen]) + 0.5) / len(blocks) for cells in own]
        accuracies = (f"{fmean(means(own, accuracy(*scopes))):.1f}" for scopes in (["head"], ["full"], blocks))
        shown = f"{fmean(depth):.2f}, {min(depth):.2f}, {max(depth):.2f}"
        over_both = (estimate(means(own, over(name, *blocks))) for name in BASELINES)
        print(row(data, len(own), len(pairs(own)), *accuracies, *over_both, shown))


def show_tests(sweeps: Sequence[Cells]) -> None:
    """Print medians and one-sided Wilcoxon tests of the best block's gains, and how they depend on each data set."""
    columns = [f"over {name}: median of pairs, p" for name in BASELINES]
    start(
        "Does the best block gain? Wilcoxon's signed-rank test over pairs, one-sided, Holm's correction", "of", *columns
    )
    for left_out in (None, *EVIDENCE):
        own = [cells for cells in sweeps if cells.data != left_out]
        gains = [means(own, over(name, *sweeps[0].blocks)) for name in BASELINES]
        corrected = multipletests([wilcoxon(one, alternative="greater").pvalue for one in gains], method="holm")[1]
        shown = [f"{median(one):+.1f}, {p:.2g}" for one, p in zip(gains, corrected, strict=True)]
        print(row("all data sets" if left_out is None else f"all but {left_out}", *shown))


def show_order(sweeps: Sequence[Cells]) -> None:
    """Print whether the order of blocks is the same network's on another split rather than another network's."""
    title = "Does the order of blocks belong to the network? Kendall's tau-b of test accuracies on two splits"
    start(title, "data", "same network", "two networks", "p, by permuting networks within splits")
    for data in EVIDENCE:
        same, others, p = order_test(on(data, sweeps))
        print(row(data, f"{same:.2f}", f"{others:.2f}", f"{p:.2g}"))


def order_test(sweeps: Sequence[Cells]) -> tuple[float, float, float]:
    """Return the mean tau of two splits of one network, that of two networks, and p by permuting networks per split."""
    profiles = [cells.test[cells.at_best_rates] for cells in sweeps]
    taus = np.array([[kendalltau(one, other).statistic for other in profiles] for one in profiles])
    seeds, networks = np.array([cells.seed for cells in sweeps]), np.array([cells.model for cells in sweeps])
    splits_differ = seeds[:, None] != seeds

    def mean_tau(of: np.ndarray, *, same: bool) -> float:
        return float(taus[splits_differ & ((of[:, None] == of) == same)].mean())

    random, observed, higher = np.random.default_rng(0), mean_tau(networks, same=True), 0
    for _ in range(PERMUTATIONS):
        drawn = networks.copy()
        for seed in set(seeds):
            drawn[seeds == seed] = random.permutation(networks[seeds == seed])
        higher += mean_tau(drawn, same=True) >= observed - 1e-12
    return observed, mean_tau(networks, same=False), (1 + higher) / (1 + PERMUTATIONS)


def show_rates(sweeps: Sequence[Cells]) -> None:
    """Print how the gains depend on the rates that each scope has."""
    ways = {
        "chosen on validation: of three, and of four for the head": sweeps,
        "chosen on validation: of three": [cells.with_rates(RATES) for cells in sweeps],
        **{f"{rate:g} for all": [cells.with_rates([rate]) for cells in sweeps] for rate in RATES},
    }
    start("Gain by learning rates", "rates", *(f"best block over {name}" for name in BASELINES), "full over head")
    for way, own in ways.items():
        blocks = over("head", *sweeps[0].blocks), over("full", *sweeps[0].blocks), over("head", "full")
        print(row(way, *(estimate(means(own, value)) for value in blocks)))


def show_seeds(sweeps: Sequence[Cells]) -> None:
    """Print the standard deviation of accuracies over seeds, of pairs that have several."""
    several = [own for own in pairs(sweeps).values() if len(own) > 1]
    start(f"Standard deviation over seeds ({len(several)} pairs with two seeds or more)", "scope", "points")
    blocks = sweeps[0].blocks
    fixed = [fmean(spread(own, accuracy(block)) for block in blocks) for own in several]
    for name, values in {
        "head": [spread(own, accuracy("head")) for own in several],
        "full": [spread(own, accuracy("full")) for own in several],
        "best block, chosen for each seed": [spread(own, accuracy(*blocks)) for own in several],
        "one block for all seeds (mean over blocks)": fixed,
    }.items():
        print(row(name, estimate(values, sign="")))


def draw(sweeps: Sequence[Cells]) -> Figure:
    """Plot the gain of each block over the head: a line per network, and their mean; one panel per data set."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    blocks = sweeps[0].blocks
    for axes, data in zip(panels.flat, EVIDENCE, strict=True):
        networks = pairs(on(data, sweeps)).values()
        lines = np.array([[fmean(defined(own, over("head", block))) for block in blocks] for own in networks])
        axes.axhline(0, color="#E69F00", ls="--", label="head only")
        full = fmean(means(on(data, sweeps), over("head", "full")))
        axes.axhline(full, color="#009E73", ls="-.", label="full fine-tuning (mean)")
        axes.plot(lines.T, color="#8c8c8c", lw=0.8, label=["one network", *[None] * (len(lines) - 1)])
        axes.plot(lines.mean(0), color="#0072B2", marker="o", ms=4, label="mean of networks")
        axes.set(title=data, xticks=range(len(blocks)))
        axes.grid(alpha=0.3)
    figure.supxlabel("trained block (0 touches the pixels)")
    figure.supylabel("gain over the head on test, points")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def accuracy(*scopes: str) -> Value:
    """Return the test accuracy, in percent, of the one of some scopes that validation chooses; None if all diverged."""

    def value(cells: Cells) -> float | None:
        found = cells.best(scopes)
        return None if found is None else 100 * float(cells.test[found])

    return value


def over(baseline: str, *scopes: str) -> Value:
    """Return the gain of the same over a baseline, in points; None if one of them diverged."""
    first, second = accuracy(*scopes), accuracy(baseline)

    def value(cells: Cells) -> float | None:
        left, right = first(cells), second(cells)
        return None if left is None or right is None else left - right

    return value


def defined(sweeps: Iterable[Cells], value: Value) -> list[float]:
    """Return the values that are there."""
    return [one for cells in sweeps if (one := value(cells)) is not None]


def means(sweeps: Iterable[Cells], value: Value) -> list[float]:
    """Return the mean over seeds of each pair."""
    return [fmean(found) for own in pairs(sweeps).values() if (found := defined(own, value))]


def spread(sweeps: Iterable[Cells], value: Value) -> float:
    """Return the standard deviation over sweeps."""
    return stdev(defined(sweeps, value))


def estimate(values: Sequence[float], sign: str = "+") -> str:
    """Return a mean with its interval."""
    low, high = interval(values) or (float("nan"), float("nan"))
    return f"{fmean(values):{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def start(title: str, *columns: str) -> None:
    """Print the head of a table."""
    print(f"\n{title}\n\n{row(*columns)}\n{row(*['---'] * len(columns))}")


def row(*values: object) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, values))} |"


if __name__ == "__main__":
    main()
