"""What a reviewer asks of accuracies: intervals over seeds, paired tests, ranks.

Tests compare treatments (`head`, `full`, the best block of each quarter, the best block) across pairs of a backbone and
a data set. A pair's accuracies are means over the seeds that both treatments have, and over its sweeps if there are
several (other partitions, other settings): however many, they are one observation. Blocks are chosen on validation and
compared on test. Demsar (2006), "Statistical comparisons of classifiers over multiple data sets",
recommends these tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from statistics import fmean
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from blockwise.analysis.summary import Row, Sweep, by_backbone_and_data

LEVEL = 0.05
# SciPy's documentation of `friedmanchisquare` calls its p-value reliable above so many
FRIEDMAN_PAIRS = 10
RESAMPLES = 9999
# pairs up to which every combination of signs is tried: the paper's fifteen backbones are among them
EXACT = 16
BEST = "best block"
BASELINES = ("head", "full")
QUARTERS = tuple(f"quarter {number}" for number in (1, 2, 3, 4))
TREATMENTS = (*BASELINES, *QUARTERS, BEST)
# what the table of tests compares: blocks with baselines, and these with each other
COMPARISONS = (("full", "head"), *((block, baseline) for block in (BEST, *QUARTERS) for baseline in BASELINES))


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of two treatments.

    Attributes:
        pairs: Backbones on data sets that have both.
        needed: Pairs without which no outcome can be significant.
        median: Of the differences, first minus second; None without pairs.
        effect: Matched-pairs rank-biserial correlation (Kerby, 2014): 1 if the first is always higher, -1 if lower.
        p: Of the test alone; None with too few pairs.
        p_holm: Corrected for the number of tests (Holm, 1979).
    """

    first: str
    second: str
    pairs: int
    needed: int
    median: float | None = None
    effect: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the first is higher, and not by chance."""
        return self.p_holm is not None and self.p_holm < LEVEL and (self.effect or 0) > 0


@dataclass(frozen=True)
class Ranks:
    """Friedman's test of all treatments, with Nemenyi's of each pair.

    Attributes:
        pairs: Backbones on data sets that have all treatments.
        p: Of Friedman's test.
        mean_ranks: One a treatment; 1 is best.
        nemenyi: p-values, treatments by treatments.
    """

    pairs: int
    p: float
    mean_ranks: pd.Series
    nemenyi: pd.DataFrame


@dataclass(frozen=True)
class Share:
    """How often a block of a quarter beats both baselines.

    Attributes:
        wins: Blocks that do.
        blocks: Blocks of that quarter, in all sweeps that have both baselines.
        pairs: The number of backbones on data sets that they are of.
        interval: 95 %, by bootstrap over those; None with too few.
    """

    quarter: int
    wins: int
    blocks: int
    pairs: int
    interval: tuple[float, float] | None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    error = stats.sem(values)
    low, high = stats.t.interval(1 - LEVEL, len(values) - 1, np.mean(values), error) if error else [np.mean(values)] * 2
    return float(low), float(high)


def treatment(sweep: Sweep, name: str) -> Row | None:
    """Return what a sweep has of a treatment; blocks are chosen by validation accuracy."""
    if name in BASELINES:
        return sweep.row(name)
    blocks = sweep.single_blocks
    if name == BEST:
        return blocks[0] if blocks else None
    quarter = int(name.split()[1])
    return next((row for row in blocks if row.records[0].cell.quarter == quarter), None)


def paired_tests(
    sweeps: Sequence[Sweep],
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    difference: Callable[[Row, Row], float | None] = Row.difference,
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> list[PairedTest]:
    """Compare treatments across backbones and data sets.

    Args:
        sweeps: Those of a backbone on a data set give one difference, the mean of theirs.
        comparisons: Names of treatments.
        difference: What is tested of two rows; None where they have nothing to compare.
        alternative: `greater` asks only whether the first is higher.
    """
    needed = pairs_needed(len(comparisons), sides=2 if alternative == "two-sided" else 1)
    tests = []
    for first, second in comparisons:
        found = []
        for group in by_backbone_and_data(sweeps):
            rows = ((treatment(sweep, first), treatment(sweep, second)) for sweep in group)
            own = [difference(one, other) for one, other in rows if one is not None and other is not None]
            if known := [d for d in own if d is not None]:
                found.append(fmean(known))
        tests.append(_signed_rank(first, second, found, needed, alternative))
    return _holm(tests)


def pairs_needed(tests: int, sides: int = 2) -> int:
    """Return from how many pairs on some outcome has p < 0.05, Holm's correction for so many tests included."""
    return next(pairs for pairs in count(1) if tests * sides / 2**pairs < LEVEL)


def _signed_rank(first: str, second: str, differences: list[float], needed: int, alternative: str) -> PairedTest:
    test = PairedTest(first, second, len(differences), needed)
    if not differences:
        return test
    test = replace(test, median=float(np.median(differences)))
    # differences of fractions of so many images: equal ones must tie
    rounded = np.round(differences, 6)
    moved = rounded[rounded != 0]
    if not len(moved):
        return replace(test, effect=0.0, p=1.0 if len(differences) >= needed else None)
    positive = stats.wilcoxon(moved, alternative="greater").statistic
    effect = 2 * positive / (len(moved) * (len(moved) + 1) / 2) - 1
    if len(differences) < needed:
        return replace(test, effect=float(effect))
    # SciPy's tables assume no ties. For a few pairs all combinations of signs can be tried; for more, its normal
    # approximation is used, whose p is too large where nearly all differences have one sign
    exact = len(moved) <= EXACT
    p = _exact_p(moved, alternative) if exact else stats.wilcoxon(moved, alternative=alternative).pvalue
    return replace(test, effect=float(effect), p=float(p))


def _exact_p(differences: np.ndarray, alternative: str) -> float:
    """Return Wilcoxon's p-value from all combinations of signs; the ranks, which no sign changes, are computed once."""
    ranks = np.sign(differences) * stats.rankdata(np.abs(differences))
    result = stats.permutation_test(
        (ranks,),
        lambda signed, axis=-1: np.where(signed > 0, signed, 0).sum(axis),
        permutation_type="samples",
        alternative=alternative,
        n_resamples=2**EXACT,
        vectorized=True,
    )
    return float(result.pvalue)


def _holm(tests: list[PairedTest]) -> list[PairedTest]:
    from statsmodels.stats.multitest import multipletests

    done = [index for index, test in enumerate(tests) if test.p is not None]
    if done:
        corrected = multipletests([tests[index].p for index in done], method="holm")[1]
        for index, p in zip(done, corrected, strict=True):
            tests[index] = replace(tests[index], p_holm=float(p))
    return tests


def accuracy_matrix(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Return test accuracies by treatment (columns) of every backbone on a data set (lines) that has all of them."""
    lines = {}
    for group in by_backbone_and_data(sweeps):
        means = [line for sweep in group if (line := _accuracies(sweep))]
        if means:
            lines[f"{group[0].backbone} on {group[0].data}"] = {n: fmean(line[n] for line in means) for n in TREATMENTS}
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(TREATMENTS))


def _accuracies(sweep: Sweep) -> dict[str, float]:
    """Return the test accuracy of each treatment over the seeds that all have; nothing where one is missing."""
    rows = {name: row for name in TREATMENTS if (row := treatment(sweep, name)) is not None}
    common = set.intersection(*(row.seeds for row in rows.values())) if len(rows) == len(TREATMENTS) else set()
    return {name: round(row.mean("test", seeds=common), 6) for name, row in rows.items()} if common else {}


def ranks(matrix: pd.DataFrame) -> Ranks | None:
    """Rank treatments (columns) within each line, 1 for the most accurate; None with too few lines."""
    if len(matrix) <= FRIEDMAN_PAIRS or not matrix.to_numpy().std(axis=1).any():
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman

    p = stats.friedmanchisquare(*(matrix[name] for name in matrix)).pvalue
    mean_ranks = matrix.rank(axis=1, ascending=False).mean()
    return Ranks(len(matrix), float(p), mean_ranks, posthoc_nemenyi_friedman(matrix.reset_index(drop=True)))


def quarter_shares(sweeps: Sequence[Sweep]) -> list[Share]:
    """Count, quarter by quarter, the blocks that test above both baselines."""
    shares = []
    for quarter in (1, 2, 3, 4):
        groups = ([w for sweep in group if (w := _wins(sweep, quarter))] for group in by_backbone_and_data(sweeps))
        counts = np.array([np.sum(group, axis=0) for group in groups if group]).reshape(-1, 2)
        wins, blocks = counts.sum(0)
        shares.append(Share(quarter, int(wins), int(blocks), len(counts), _bootstrap(counts)))
    return shares


def _wins(sweep: Sweep, quarter: int) -> tuple[int, int] | None:
    baselines = [row for name in BASELINES if (row := sweep.row(name)) is not None]
    blocks = [row for row in sweep.single_blocks if row.records[0].cell.quarter == quarter]
    if len(baselines) < len(BASELINES) or not blocks:
        return None
    beats = [all((block.difference(baseline) or 0) > 0 for baseline in baselines) for block in blocks]
    return sum(beats), len(beats)


def _bootstrap(counts: np.ndarray) -> tuple[float, float] | None:
    """Resample backbones on data sets, not blocks: those of one backbone resemble each other."""
    if len(counts) < pairs_needed(1):
        return None
    result = stats.bootstrap(
        (counts[:, 0], counts[:, 1]),
        lambda wins, blocks, axis=-1: wins.sum(axis) / blocks.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
