"""Gains on test images: intervals that hold, and McNemar's test as statsmodels has it."""

import numpy as np
import pytest
from made_up import sweep_of
from statsmodels.stats.contingency_tables import mcnemar as theirs

from blockwise.analysis.uncertainty import gain
from blockwise.analysis.uncertainty.gains import mcnemar

RANDOM = np.random.default_rng(1)


def test_mcnemar_is_that_of_statsmodels():
    for _ in range(20):
        one, other = RANDOM.random(60) < 0.7, RANDOM.random(60) < 0.8
        table = [[(one & other).sum(), (one & ~other).sum()], [(~one & other).sum(), (~one & ~other).sum()]]
        assert mcnemar(one, other) == pytest.approx(theirs(table, exact=True).pvalue)
    assert mcnemar(one, one) == 1.0


def test_an_interval_of_one_seed(tmp_path):
    right = np.zeros((200, 2), bool)
    right[:150, 0] = right[:130, 1] = True
    sweep = sweep_of(tmp_path, {"3": [right[:, 0]], "head": [right[:, 1]]}, split="test")
    found = gain(sweep.row("3"), sweep.row("head"))
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.06, 0.145), abs=0.006)  # 20 of 200, by binomial quantiles
    assert found.images == pytest.approx(np.sqrt(0.1 * 0.9 / 200))
    assert found.seeds is None
    assert found.p == pytest.approx(2 * 0.5**20)


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_intervals_contain_the_truth(tmp_path, seeds):
    covered = []
    for number in range(60):
        shift = RANDOM.normal(0, 0.02, seeds)
        hard = RANDOM.random(300)  # the same images in all seeds
        right = {
            "3": [hard < 0.8 + s + RANDOM.normal(0, 0.1, 300) for s in shift],
            "head": [hard < 0.75 + RANDOM.normal(0, 0.1, 300) for _ in shift],
        }
        sweep = sweep_of(tmp_path / str(number), right, split="test")
        found = gain(sweep.row("3"), sweep.row("head"))
        truth = 0.05 + (shift[0] if seeds == 1 else 0)
        covered.append(found.low <= truth <= found.high)
    assert sum(covered) >= 0.87 * 60  # 95 % less three standard errors


def test_an_interval_of_two_seeds_ends_where_accuracies_do(tmp_path):
    right = {"3": [np.ones(40, bool), np.zeros(40, bool)], "head": [np.zeros(40, bool), np.ones(40, bool)]}
    sweep = sweep_of(tmp_path, right, split="test")
    found = gain(sweep.row("3"), sweep.row("head"))
    assert (found.low, found.difference, found.high) == (-1, 0, 1)


def test_without_predictions_there_is_no_gain(tmp_path):
    sweep = sweep_of(tmp_path, {"3": [np.ones(9, bool)], "head": [np.ones(9, bool)]}, split="val")
    assert gain(sweep.row("3"), sweep.row("head")) is None
