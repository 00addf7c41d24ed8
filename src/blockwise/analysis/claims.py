"""The claims of Barakat & Huang (2023), tested on any records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import factorial, prod
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy import stats

from blockwise.analysis.frame import depth
from blockwise.analysis.statistics import BASELINES, BEST, LEVEL, PairedTest, paired_tests, quarter_shares
from blockwise.analysis.summary import Row, Sweep, by_backbone_and_data, by_policy
from blockwise.analysis.uncertainty import confidence
from blockwise.results.record import STATIC

Verdict = Literal["supported", "not supported", "not enough data"]
PERMUTATIONS = 1999
TEST = (
    "Wilcoxon signed-rank test across pairs of backbone and data set, one-sided, against each baseline, "
    "Holm's correction"
)


@dataclass(frozen=True)
class Claim:
    """A claim and its test on records.

    Attributes:
        statement: The claim.
        statistic: The statistical test.
        evidence: The result of the test in one line.
        verdict: `supported` at a significance level of 5 %, `not supported`, or `not enough data`.
    """

    statement: str
    statistic: str
    evidence: str
    verdict: Verdict


class Run(NamedTuple):
    """The relative depth of the best block of a backbone on a data set with one seed."""

    backbone: str
    data: str
    depth: float


def claims(sweeps: Sequence[Sweep]) -> list[Claim]:
    """Test the paper's claims on recorded sweeps, for each policy by itself."""
    found = []
    for policy, group in by_policy(sweeps).items():
        tested = (beats_baselines, differs_between_backbones, fourth_quarter, is_reliable)
        prefix = "" if policy == STATIC else f"Policy {policy}: "
        found += [replace(claim, statement=prefix + claim.statement) for claim in (test(group) for test in tested)]
    return found


def claims_list(found: Sequence[Claim]) -> Table:
    """Return claims as a table for a terminal."""
    styles = {"supported": "green", "not supported": "red", "not enough data": "yellow"}
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for claim in found:
        table.add_row(Text(claim.verdict, styles[claim.verdict]), Text(claim.statement, "bold"))
        table.add_row("", claim.evidence)
        table.add_row("", Text(claim.statistic, "dim"))
        table.add_row()
    return table


def beats_baselines(sweeps: Sequence[Sweep]) -> Claim:
    """Test whether the best block, selected on validation, has a higher test accuracy than both baselines."""
    tests = paired_tests(sweeps, [(BEST, name) for name in BASELINES], alternative="greater")
    return Claim("The best block beats both baselines.", TEST, _gains(tests), _verdict(tests))


def fourth_quarter(sweeps: Sequence[Sweep]) -> Claim:
    """Test the same for the best block of the fourth quarter, next to the head."""
    tests = paired_tests(sweeps, [("quarter 4", name) for name in BASELINES], alternative="greater")
    evidence, share = _gains(tests), quarter_shares(sweeps)[3]
    if share.blocks:
        within = "" if share.interval is None else f" (95 % interval {_percent(*share.interval)})"
        evidence += f"; of its blocks {share.wins} of {share.blocks} beat both{within}"
    return Claim("A block of the fourth quarter generally beats the baselines.", TEST, evidence, _verdict(tests))


def is_reliable(sweeps: Sequence[Sweep]) -> Claim:
    """Test whether the best block's accuracy has a lower standard deviation over seeds than the baselines'."""
    tests = paired_tests(sweeps, [(BEST, name) for name in BASELINES], _steadier, alternative="greater")
    parts = [
        f"{-100 * test.median + 0.0:+.2f} points of standard deviation against {test.second} ({_pairs(test)})"
        for test in tests
        if test.median is not None
    ]
    evidence = "; ".join(parts) or "no backbone has two seeds of the best block and of a baseline"
    statement = "The best block is more reliable: its accuracy spreads less over seeds than the baselines'."
    return Claim(statement, f"{TEST}; of standard deviations of test accuracy", evidence, _verdict(tests))


def differs_between_backbones(sweeps: Sequence[Sweep]) -> Claim:
    """Test whether the depth of the best block differs between backbones more than between seeds and data sets."""
    runs = [
        Run(group[0].backbone, group[0].data, depth)
        for group in by_backbone_and_data(sweeps)
        for depth in _best_depths(group)
    ]
    counted = Counter(run.depth for run in runs)
    of_backbone = Counter(run.backbone for run in runs)
    shown = ", ".join(f"{value:.2f} ({times} x)" for value, times in sorted(counted.items()))
    counts = f"backbones: {len(of_backbone)}, runs: {len(runs)}"
    evidence = f"relative depth of the best block: {shown or 'unknown'}; {counts}"
    # backbones with a single run say nothing about the variation between runs
    repeated = [run for run in runs if of_backbone[run.backbone] > 1]
    verdict: Verdict = "not enough data"
    if len(counted) == 1 and len(of_backbone) > 2:
        verdict = "not supported"
    elif _arrangements(repeated) > 1 / LEVEL:
        p = _permuted(repeated)
        verdict = "supported" if p < LEVEL else "not supported"
        evidence += f"; p = {p:.2g}"
        if (shared := shared_depth(sweeps)) is not None:
            evidence += f"; by the validation images, a block at depth {shared:.2f} may be the best of all backbones"
            verdict = "not supported"
    elif len(counted) > 1:
        evidence += "; runs of more seeds are needed to tell differences between backbones from chance"
    return Claim(
        "The best block differs between backbones.",
        "Kruskal-Wallis test of the best block's depth in each run (seed and data set), p by permutation; runs are "
        "ranked and permuted within data sets",
        evidence,
        verdict,
    )


def shared_depth(sweeps: Sequence[Sweep]) -> float | None:
    """Return a relative depth at which the block may be the best one of all backbones.

    Where there is one, choices that differ may be toss-ups. The sets of blocks that may be the best contain the best
    block with a probability of 95 % for all sweeps together (Bonferroni's correction). Blocks that a search has stopped
    may be the best as well.

    Returns:
        None if the backbones' sets have nothing in common on some data set, or if predictions are missing.
    """
    depths = {depth(block, sweep.num_blocks) for sweep in sweeps for block in range(sweep.num_blocks)}
    shared: dict[str, set[float]] = {}
    for sweep in sweeps:
        if (sure := confidence(sweep, 1 - LEVEL / len(sweeps))) is None:
            return None
        possible = {*sure.scopes, *sweep.unfinished}
        own = {at for at in depths if str(int(at * sweep.num_blocks)) in possible}
        shared[sweep.data] = shared.get(sweep.data, depths) & own
    return min(shared[sweeps[0].data]) if all(shared.values()) else None


def _best_depths(group: Sequence[Sweep]) -> list[float]:
    """Return the depth of the best block by validation, one value per seed that all blocks have: the mean of sweeps."""
    by_seed: dict[int, list[float]] = {}
    for sweep in group:
        rows = [row for row in sweep.rows if row.scope.isdigit() and (row.records or row.pruned)]
        tried = [row.seeds | {record.seed for record in row.pruned} for row in rows]
        for seed in sorted(set.intersection(*tried)) if len(rows) > 1 else ():
            survived = [row for row in rows if seed in row.seeds]
            if not survived:
                continue
            best = max(survived, key=lambda row: (row.selection_score({seed}), row.blocks))
            by_seed.setdefault(seed, []).append(depth(best.blocks[0], sweep.num_blocks))
    return [fmean(depths) for depths in by_seed.values()]


def _arrangements(runs: Sequence[Run]) -> float:
    """Return the number of ways to assign the runs of each data set to backbones: one over it is the smallest p."""
    by_data = [[run for run in runs if run.data == data] for data in dict.fromkeys(run.data for run in runs)]
    if len(by_data) > 1 and _has_seeds(runs):  # each data set is a comparison of its own
        return prod(map(_arrangements, by_data))
    counts = Counter((run.data, run.backbone) for run in runs)
    ways = prod(factorial(times) for times in Counter(run.data for run in runs).values())
    # backbones with equally many runs on each data set could have each other's names
    patterns = Counter(
        tuple(sorted((data, times) for (data, own), times in counts.items() if own == backbone))
        for backbone in {run.backbone for run in runs}
    )
    return ways / prod(map(factorial, counts.values())) / prod(map(factorial, patterns.values()))


def _has_seeds(runs: Sequence[Run]) -> bool:
    """Return whether on every data set, a backbone has several runs."""
    counts = Counter((run.data, run.backbone) for run in runs)
    return {data for (data, _), times in counts.items() if times > 1} == {run.data for run in runs}


def _permuted(runs: Sequence[Run]) -> float:
    """Return the p-value of Kruskal and Wallis's test by permutation, with ranks within data sets.

    Data sets differ in where their best blocks are, which says nothing about backbones. Ranks are relative to the mean
    of their data set and divided by its number of runs and one (van Elteren, 1960). They do not depend on the backbones
    and are computed once; given them, the statistic grows with the sum below alone. With several seeds per data set,
    backbones are compared on each data set and the statistics are added; else by their ranks on all data sets.
    """
    depths = np.array([run.depth for run in runs])
    strata = [np.flatnonzero([run.data == data for run in runs]) for data in dict.fromkeys(run.data for run in runs)]
    ranks = np.zeros(len(runs))
    for own in strata:
        ranks[own] = stats.rankdata(depths[own]) / (len(own) + 1) - 0.5
    apart = _has_seeds(runs)
    names = [f"{run.backbone} on {run.data}" if apart else run.backbone for run in runs]
    _, groups = np.unique(names, return_inverse=True)
    random = np.random.default_rng(0)

    def statistic(order: np.ndarray) -> float:
        return float((np.bincount(groups, ranks[order]) ** 2 / np.bincount(groups)).sum())

    observed, order, extreme = statistic(np.arange(len(runs))), np.arange(len(runs)), 0
    for _ in range(PERMUTATIONS):
        for own in strata:
            order[own] = random.permutation(own)
        extreme += statistic(order) >= observed - 1e-9
    return (1 + extreme) / (1 + PERMUTATIONS)


def _steadier(row: Row, baseline: Row) -> float | None:
    mine, theirs = row.spread("test"), baseline.spread("test")
    return None if mine is None or theirs is None else theirs - mine


def _verdict(tests: Sequence[PairedTest]) -> Verdict:
    if any(test.p_holm is None for test in tests):
        return "not enough data"
    return "supported" if all(test.significant for test in tests) else "not supported"


def _gains(tests: Sequence[PairedTest]) -> str:
    parts = [
        f"{100 * test.median:+.1f} points to {test.second} ({_pairs(test)})"
        for test in tests
        if test.median is not None
    ]
    return "; ".join(parts) or "no backbone has both"


def _pairs(test: PairedTest) -> str:
    if test.p_holm is None:
        return f"{test.pairs} of the {test.needed} pairs that are needed"
    return f"median of {test.pairs} pairs, p = {test.p_holm:.2g}"


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"
