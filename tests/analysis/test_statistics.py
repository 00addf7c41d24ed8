"""Statistics against known answers and against formulas written out here."""

import math

import numpy as np
import pytest
from grids import BACKBONES, flat, grid, lower, peaked
from scipy import stats

from blockwise.analysis.statistics import (
    BEST,
    TREATMENTS,
    accuracy_matrix,
    interval,
    paired_tests,
    pairs_needed,
    quarter_shares,
    ranks,
    treatment,
)
from blockwise.analysis.summary import sweeps


def test_the_interval_is_students():
    low, high = interval([0.8, 0.9, 0.85])
    half = 4.302652729911275 * 0.05 / math.sqrt(3)  # the quantile of two degrees of freedom, from a table
    assert (low, high) == pytest.approx((0.85 - half, 0.85 + half))
    assert interval([0.8]) is None
    assert interval([0.8, 0.8]) == (0.8, 0.8)


def test_treatments_are_chosen_on_validation():
    records = grid(peaked, backbones=("net00",))
    for record in records:
        if record.cell.scope == "11":
            record.metrics.val["top1"] = 0.99  # though another is better on test
    (sweep,) = sweeps(records)
    assert treatment(sweep, BEST).scope == "11"
    assert treatment(sweep, "quarter 4").scope == "11"
    assert treatment(sweep, "quarter 3").scope == "6"


def test_differences_across_sweeps():
    found = sweeps(grid(peaked, noise=0, backbones=BACKBONES[:10]))
    (test,) = paired_tests(found, [(BEST, "head")])
    assert test.pairs == 10
    assert test.median == pytest.approx(0.92 - 0.81)
    assert test.effect == 1
    assert test.p == pytest.approx(2 / 2**10)
    assert test.significant


def test_the_effect_is_that_of_ranks_written_out():
    found = sweeps(grid(lower, noise=0.1, seeds=(0,)))
    (test,) = paired_tests(found, [("quarter 1", "full")])
    differences = np.array([treatment(s, "quarter 1").mean("test") - treatment(s, "full").mean("test") for s in found])
    order = stats.rankdata(abs(differences))
    expected = (order[differences > 0].sum() - order[differences < 0].sum()) / order.sum()
    assert test.effect == pytest.approx(expected)
    assert test.p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_holms_correction_written_out():
    tests = paired_tests(sweeps(grid(lower, noise=0.05, seeds=(0,))))
    ordered = sorted(tests, key=lambda test: test.p)
    highest = 0.0
    for rank, test in enumerate(ordered):
        highest = max(highest, min(1.0, (len(tests) - rank) * test.p))
        assert test.p_holm == pytest.approx(highest)


@pytest.mark.parametrize(("tests", "sides", "pairs"), [(1, 2, 6), (2, 1, 6), (2, 2, 7), (11, 2, 9)])
def test_how_many_pairs_are_needed(tests, sides, pairs):
    assert pairs_needed(tests, sides) == pairs
    assert min(1, tests * sides / 2 ** (pairs - 1)) >= 0.05 > tests * sides / 2**pairs


def test_too_few_sweeps_have_no_p():
    few = sweeps(grid(peaked, backbones=BACKBONES[:5]))
    for test in paired_tests(few):
        assert test.pairs == 5
        assert test.p is None
        assert test.p_holm is None
        assert not test.significant
    assert ranks(accuracy_matrix(few)) is None
    assert all(share.interval is None for share in quarter_shares(few))


def test_no_difference_is_no_effect():
    (test,) = paired_tests(sweeps(grid(lambda *_: 0.5, noise=0)), [("full", "head")])
    assert (test.median, test.effect, test.p) == (0, 0, 1)


def test_a_sweep_that_lacks_a_baseline_gives_no_pair():
    records = [r for r in grid(peaked) if (r.backbone.name, r.cell.scope) != ("net03", "full")]
    head, full = paired_tests(sweeps(records), [(BEST, "head"), (BEST, "full")])
    assert (head.pairs, full.pairs) == (15, 14)
    assert len(accuracy_matrix(sweeps(records))) == 14


def test_missing_seeds_are_missing_on_both_sides():
    records = grid(peaked, noise=0)
    for name in BACKBONES:  # remove seed 2 of `head`, which changes the mean of `head`
        records = [r for r in records if (r.backbone.name, r.cell.scope, r.seed) != (name, "head", 2)]
    (test,) = paired_tests(sweeps(records), [("full", "head")])
    by_hand = np.mean([peaked("net00", "", "full", s) - peaked("net00", "", "head", s) for s in (0, 1)])
    assert test.median == pytest.approx(by_hand)


def test_ranks_are_friedmans_and_nemenyis():
    matrix = accuracy_matrix(sweeps(grid(peaked, noise=0.01)))
    found = ranks(matrix)
    assert list(matrix) == list(TREATMENTS)
    assert found.p == pytest.approx(stats.friedmanchisquare(*matrix.to_numpy().T).pvalue)
    assert found.mean_ranks.sum() == pytest.approx(sum(range(1, 8)))
    assert found.mean_ranks[BEST] < found.mean_ranks["head"]
    # two treatments differ where mean ranks are further apart than q sqrt(k (k + 1) / 6 n), q from Demsar's table
    critical = 2.949 * math.sqrt(7 * 8 / (6 * 15))
    for one in TREATMENTS:
        for other in TREATMENTS:
            apart = abs(found.mean_ranks[one] - found.mean_ranks[other])
            assert (found.nemenyi.loc[one, other] < 0.05) == (apart > critical)


def test_how_often_a_quarter_beats_both_baselines():
    def half(backbone, data, scope, seed):
        wins = scope in ("9", "10") or (scope == "11" and int(backbone[3:]) < 5)
        return {"head": 0.8, "full": 0.8}.get(scope, 0.9 if wins else 0.7)

    shares = quarter_shares(sweeps(grid(half, noise=0)))
    assert [(share.wins, share.blocks, share.pairs) for share in shares] == [*[(0, 45, 15)] * 3, (35, 45, 15)]
    low, high = shares[3].interval
    # the share of wins is 2/3 plus a third of a proportion of 5 in 15
    spread = 1.96 * math.sqrt(1 / 3 * 2 / 3 / 15) / 3
    assert (low, high) == pytest.approx((35 / 45 - spread, 35 / 45 + spread), abs=0.02)


def test_of_nothing_there_are_no_statistics():
    assert quarter_shares([])[0].blocks == 0
    assert paired_tests([])[0].pairs == 0
    assert ranks(accuracy_matrix([])) is None
    (sweep,) = sweeps([r for r in grid(flat, backbones=("net00",)) if r.cell.scope == "head"])
    assert treatment(sweep, BEST) is None
