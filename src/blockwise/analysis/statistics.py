"""Statistics of accuracies: confidence intervals over seeds, paired tests, ranks.

Tests compare treatments (`head`, `full`, the best block of each quarter, the best block) across pairs of a backbone and
a data set. Each pair is one observation: its accuracies are means over the seeds that both treatments have, and over
its sweeps if there are several (other partitions or settings). Blocks are selected on validation and compared on test.
Demsar (2006), "Statistical comparisons of classifiers over multiple data sets", recommends these tests.
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

from blockwise.analysis.summary import PARTS, Row, Sweep, by_backbone_and_data, by_policy
from blockwise.results.record import STATIC

LEVEL = 0.05
# SciPy's documentation calls the p-value of `friedmanchisquare` reliable for more than 10 samples
FRIEDMAN_PAIRS = 10
RESAMPLES = 9999
# up to this number of pairs, Wilcoxon's test is exact; the paper has fifteen backbones
EXACT = 16
BEST = "best block"
BASELINES = ("head", "full")
QUARTERS = tuple(f"quarter {number}" for number in (1, 2, 3, 4))
TREATMENTS = (*BASELINES, *QUARTERS, BEST)
# the table of tests compares blocks with baselines, and the baselines with each other
COMPARISONS = (("full", "head"), *((block, baseline) for block in (BEST, *QUARTERS) for baseline in BASELINES))


def comparisons(sweeps: Sequence[Sweep]) -> list[tuple[str, str]]:
    """Return the pairs of treatments to test: with further baselines, such as `norms` or `bias`, these as well."""
    parts = sorted({row.scope for sweep in sweeps for row in sweep.rows if row.records and PARTS.fullmatch(row.scope)})
    return [*COMPARISONS, *((BEST, part) for part in parts), *((part, base) for part in parts for base in BASELINES)]


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of two treatments.

    Attributes:
        pairs: Number of pairs of backbone and data set that have both treatments.
        needed: Number of pairs below which no result can be significant.
        median: Median difference, first minus second; None without pairs.
        effect: Matched-pairs rank-biserial correlation (Kerby, 2014): 1 if the first is always higher, -1 if lower.
        p: Uncorrected p-value; None with too few pairs.
        p_holm: p-value corrected for the number of tests (Holm, 1979); None with too few pairs.
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
        """Whether the first treatment is significantly higher."""
        return self.p_holm is not None and self.p_holm < LEVEL and (self.effect or 0) > 0


@dataclass(frozen=True)
class Ranks:
    """Friedman's test of all treatments, with Nemenyi's post-hoc test.

    Attributes:
        pairs: Number of pairs of backbone and data set that have all treatments.
        p: p-value of Friedman's test.
        mean_ranks: Mean rank of each treatment; 1 is best.
        nemenyi: p-values of Nemenyi's test, shape (treatments, treatments).
    """

    pairs: int
    p: float
    mean_ranks: pd.Series
    nemenyi: pd.DataFrame


@dataclass(frozen=True)
class Share:
    """How often the blocks of a quarter beat both baselines.

    Attributes:
        quarter: The quarter, 1 (input) to 4.
        wins: Number of blocks that beat both baselines.
        blocks: Number of blocks in the quarter, over all sweeps with both baselines.
        pairs: Number of pairs of backbone and data set with such sweeps.
        interval: 95 % confidence interval of wins / blocks, by bootstrap over pairs; None with too few pairs.
    """

    quarter: int
    wins: int
    blocks: int
    pairs: int
    interval: tuple[float, float] | None


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a mean by Student's t; None with fewer than two values."""
    if len(values) < 2:
        return None
    error = stats.sem(values)
    low, high = stats.t.interval(1 - LEVEL, len(values) - 1, np.mean(values), error) if error else [np.mean(values)] * 2
    return float(low), float(high)


def treatment(sweep: Sweep, name: str) -> Row | None:
    """Return a sweep's row of a treatment, or None; blocks are selected on validation."""
    if name in BASELINES or PARTS.fullmatch(name):
        return sweep.row(name)
    blocks = sweep.single_blocks
    if name == BEST:
        return blocks[0] if blocks else None
    return next(iter(sweep.blocks_of_quarter(int(name.split()[1]))), None)


def paired_tests(
    sweeps: Sequence[Sweep],
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    difference: Callable[[Row, Row], float | None] = Row.difference,
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> list[PairedTest]:
    """Compare treatments across backbones and data sets.

    Args:
        sweeps: The sweeps; all sweeps of a backbone on a data set give one difference, their mean.
        comparisons: Pairs of names of treatments.
        difference: Returns the tested difference of two rows; None if they have no seed in common.
        alternative: `greater` tests only whether the first treatment is higher.
    """
    needed = pairs_needed(len(comparisons), sides=2 if alternative == "two-sided" else 1)
    tests = []
    for first, second in comparisons:
        differences = []
        for group in by_backbone_and_data(sweeps):
            rows = ((treatment(sweep, first), treatment(sweep, second)) for sweep in group)
            values = [difference(one, other) for one, other in rows if one is not None and other is not None]
            if comparable := [value for value in values if value is not None]:
                differences.append(fmean(comparable))
        tests.append(_signed_rank(first, second, differences, needed, alternative))
    return _holm(tests)


def policy_tests(sweeps: Sequence[Sweep]) -> list[tuple[str, PairedTest]]:
    """Compare each policy with the first one, usually static: `full` and the best block, under the same settings."""
    first, *others = by_policy(sweeps) or {STATIC: []}
    same = {(sweep.data, sweep.backbone, sweep.base): sweep for sweep in sweeps if sweep.policy == first}
    names = [(treated, other) for other in others for treated in ("full", BEST)]
    tests = []
    for treated, other in names:
        found: dict[tuple[str, str], list[float]] = {}
        for sweep in (sweep for sweep in sweeps if sweep.policy == other):
            twin = same.get((sweep.data, sweep.backbone, sweep.base))
            rows = (treatment(sweep, treated), treatment(twin, treated)) if twin else (None, None)
            if rows[0] and rows[1] and (value := rows[0].difference(rows[1])) is not None:
                found.setdefault((sweep.data, sweep.backbone), []).append(value)
        differences = [fmean(values) for values in found.values()]
        tests.append(_signed_rank(other, first, differences, pairs_needed(len(names)), "two-sided"))
    return list(zip([treated for treated, _ in names], _holm(tests), strict=True))


def pairs_needed(tests: int, sides: int = 2) -> int:
    """Return the smallest number of pairs that can give p < 0.05 after Holm's correction for `tests` tests."""
    return next(pairs for pairs in count(1) if tests * sides / 2**pairs < LEVEL)


def _signed_rank(first: str, second: str, differences: list[float], needed: int, alternative: str) -> PairedTest:
    test = PairedTest(first, second, len(differences), needed)
    if not differences:
        return test
    test = replace(test, median=float(np.median(differences)))
    # round, so that equal fractions of images tie
    rounded = np.round(differences, 6)
    nonzero = rounded[rounded != 0]
    if not len(nonzero):
        return replace(test, effect=0.0, p=1.0 if len(differences) >= needed else None)
    positive = stats.rankdata(np.abs(nonzero))[nonzero > 0].sum()
    effect = 2 * positive / (len(nonzero) * (len(nonzero) + 1) / 2) - 1
    if len(differences) < needed:
        return replace(test, effect=float(effect))
    # SciPy's exact test assumes no ties, so for few pairs we enumerate all combinations of signs. For more pairs, SciPy
    # takes its exact test without ties (up to 50 pairs), and the normal approximation with ties
    exact = len(nonzero) <= EXACT
    p = _exact_p(nonzero, alternative) if exact else stats.wilcoxon(nonzero, alternative=alternative).pvalue
    return replace(test, effect=float(effect), p=float(p))


def _exact_p(differences: np.ndarray, alternative: str) -> float:
    """Return Wilcoxon's p-value from all combinations of signs; ranks do not depend on signs and are computed once."""
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

    tested = [index for index, test in enumerate(tests) if test.p is not None]
    if tested:
        corrected = multipletests([tests[index].p for index in tested], method="holm")[1]
        for index, p in zip(tested, corrected, strict=True):
            tests[index] = replace(tests[index], p_holm=float(p))
    return tests


def accuracy_matrix(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Return test accuracies, treatments in columns, pairs of backbone and data set that have all of them in rows."""
    lines = {}
    for group in by_backbone_and_data(sweeps):
        means = [line for sweep in group if (line := _accuracies(sweep))]
        if means:
            lines[f"{group[0].backbone} on {group[0].data}"] = {n: fmean(line[n] for line in means) for n in TREATMENTS}
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(TREATMENTS))


def _accuracies(sweep: Sweep) -> dict[str, float]:
    """Return the test accuracy of each treatment over the seeds that all have; empty if a treatment is missing."""
    rows = {name: row for name in TREATMENTS if (row := treatment(sweep, name)) is not None}
    common = set.intersection(*(row.seeds for row in rows.values())) if len(rows) == len(TREATMENTS) else set()
    return {name: round(row.mean("test", seeds=common), 6) for name, row in rows.items()} if common else {}


def ranks(matrix: pd.DataFrame) -> Ranks | None:
    """Rank treatments (columns) within each row, 1 for the highest accuracy; None with too few rows."""
    if len(matrix) <= FRIEDMAN_PAIRS or not matrix.to_numpy().std(axis=1).any():
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman

    p = stats.friedmanchisquare(*(matrix[name] for name in matrix)).pvalue
    mean_ranks = matrix.rank(axis=1, ascending=False).mean()
    return Ranks(len(matrix), float(p), mean_ranks, posthoc_nemenyi_friedman(matrix.reset_index(drop=True)))


def quarter_shares(sweeps: Sequence[Sweep]) -> list[Share]:
    """Count the blocks of each quarter whose test accuracy is higher than both baselines'."""
    shares = []
    for quarter in (1, 2, 3, 4):
        groups = ([w for sweep in group if (w := _wins(sweep, quarter))] for group in by_backbone_and_data(sweeps))
        counts = np.array([np.sum(group, axis=0) for group in groups if group]).reshape(-1, 2)
        wins, blocks = counts.sum(0)
        shares.append(Share(quarter, int(wins), int(blocks), len(counts), _bootstrap(counts)))
    return shares


def _wins(sweep: Sweep, quarter: int) -> tuple[int, int] | None:
    baselines = [row for name in BASELINES if (row := sweep.row(name)) is not None]
    blocks = sweep.blocks_of_quarter(quarter)
    if len(baselines) < len(BASELINES) or not blocks:
        return None
    beats = [all((block.difference(baseline) or 0) > 0 for baseline in baselines) for block in blocks]
    return sum(beats), len(beats)


def _bootstrap(counts: np.ndarray) -> tuple[float, float] | None:
    """Return the bootstrap interval; pairs are resampled, not blocks, since the blocks of a backbone are correlated."""
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
