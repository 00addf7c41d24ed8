"""The set of blocks that may be the best: it contains the best one as often as it says."""

import numpy as np
import pytest
from made_up import sweep_of
from scipy.stats import norm

from blockwise.analysis.uncertainty import confidence
from blockwise.analysis.uncertainty.confidence import from_scores
from blockwise.analysis.uncertainty.posterior import smooth_posterior

BLOCKS = 12


def classify(random, accuracies, images):
    """Return which images each block classifies correctly; some images are hard for all blocks."""
    difficulty = random.normal(size=(images, 1))
    own = random.normal(size=(images, len(accuracies)))
    return norm.ppf(accuracies) + np.sqrt(0.6) * difficulty + np.sqrt(0.4) * own > 0


@pytest.mark.parametrize(
    ("images", "spread", "seeds"), [(50, 0.03, 1), (100, 0.01, 1), (100, 0.03, 1), (100, 0.03, 3), (500, 0.03, 1)]
)
def test_nine_of_ten_sets_contain_the_best_block(images, spread, seeds):
    random = np.random.default_rng(images + seeds)
    found = []
    for _ in range(150):
        accuracies = np.clip(0.85 + spread * random.normal(size=BLOCKS), 0.05, 0.99)
        scores = [
            classify(random, np.clip(accuracies + 0.02 * (seeds > 1) * random.normal(size=BLOCKS), 0, 0.995), images)
            for _ in range(seeds)
        ]
        scores = [one.astype(float) for one in scores]
        sure = from_scores([str(block) for block in range(BLOCKS)], scores, draws=2000)
        found.append(str(accuracies.argmax()) in sure.scopes)
    assert 0.83 <= np.mean(found) <= 1.0


@pytest.mark.parametrize("worse", [1, 3])
def test_blocks_that_are_far_worse_make_the_others_no_more_different(worse):
    random = np.random.default_rng(worse)
    scopes, found = [str(block) for block in range(BLOCKS)], []
    for _ in range(100):
        accuracies = np.clip(0.9 + 0.01 * random.normal(size=BLOCKS), 0.05, 0.99)
        accuracies[BLOCKS - worse :] -= 0.25
        sure = from_scores(scopes, [classify(random, accuracies, 100).astype(float)], draws=2000)
        found.append(str(accuracies.argmax()) in sure.scopes)
    assert np.mean(found) >= 0.85


def made_up(folder, accuracies, images=200, seeds=1):
    random = np.random.default_rng(0)
    drawn = [classify(random, accuracies, images) for _ in range(seeds)]
    return sweep_of(folder, {str(block): [one[:, block] for one in drawn] for block in range(len(accuracies))})


def test_blocks_that_are_equal_are_all_in_the_set(tmp_path):
    sure = confidence(made_up(tmp_path, np.full(6, 0.8)))
    assert len(sure.scopes) >= 4
    assert sum(sure.probability.values()) == pytest.approx(1)
    assert max(sure.probability.values()) < 0.7


def test_a_block_that_is_far_better_is_alone(tmp_path):
    sweep = made_up(tmp_path, np.array([0.6, 0.65, 0.95, 0.6]))
    sure = confidence(sweep)
    assert sure.scopes == (sweep.best.scope,) == ("2",)
    assert sure.probability["2"] > 0.99
    assert confidence(sweep) == sure, "the same each time"


def test_seeds_narrow_the_set(tmp_path):
    accuracies = np.array([0.7, 0.78, 0.8, 0.76, 0.7])
    one, four = (confidence(made_up(tmp_path / str(seeds), accuracies, 150, seeds)) for seeds in (1, 4))
    assert len(four.scopes) <= len(one.scopes)
    assert four.probability["2"] > one.probability["2"]


def test_scores_are_shrunk_towards_each_other(tmp_path):
    sweep = made_up(tmp_path, np.array([0.75, 0.8, 0.82, 0.8]), 60)
    measured = np.ptp([row.mean("val") for row in sweep.single_blocks])
    assert np.ptp(list(confidence(sweep).shrunk.values())) < 0.8 * measured


def test_neighbours_support_each_other():
    """A block among good ones is expected to be better than one that is as good among bad ones."""
    random = np.random.default_rng(0)
    accuracies = np.array([0.6, 0.84, 0.6, 0.6, 0.6, 0.7, 0.8, 0.84, 0.8, 0.7])
    scopes = [str(block) for block in range(len(accuracies))]
    smooth, plain = 0, 0
    for _ in range(20):
        scores = [classify(random, accuracies, 60).astype(float)]
        smooth += from_scores(scopes, scores, draws=1000, smooth=True).expected_best in ("6", "7", "8")
        plain += from_scores(scopes, scores, draws=1000).expected_best in ("6", "7", "8")
    assert smooth > plain


def test_smooth_scores_are_those_of_a_gaussian_process():
    """With one length and one spread, the expected scores are those of scikit-learn."""
    gaussian_process = pytest.importorskip("sklearn.gaussian_process")
    kernels = gaussian_process.kernels
    means, depth, noise = np.array([0.7, 0.72, 0.9, 0.75, 0.6]), np.linspace(0, 1, 5), 0.03**2
    kernel = kernels.ConstantKernel(0.06**2, "fixed") * kernels.RBF(0.2, "fixed")
    # a constant of unknown size: only differences count
    fitted = gaussian_process.GaussianProcessRegressor(kernel + kernels.ConstantKernel(1e4, "fixed"), alpha=noise)
    expected = fitted.fit(depth[:, None], means).predict(depth[:, None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockwise.analysis.uncertainty.posterior.SPREADS", np.array([2.0]))
        patch.setattr("blockwise.analysis.uncertainty.posterior.LENGTHS", (0.2,))
        drawn = smooth_posterior(means, noise * np.eye(5), 200_000)
    np.testing.assert_allclose(drawn.mean(0), expected - expected.mean(), atol=5e-4)


@pytest.mark.parametrize(
    "right",
    [
        {"0": [np.ones(1, bool)], "1": [np.ones(1, bool)]},
        {"0": [np.ones(9, bool)], "1": [np.ones(8, bool)]},
    ],
    ids=["one image", "other images"],
)
def test_without_comparable_predictions_there_is_none(tmp_path, right):
    assert confidence(sweep_of(tmp_path, right)) is None


def test_records_without_predictions_have_none(tmp_path):
    assert confidence(sweep_of(tmp_path, {"0": [np.ones(9, bool)], "1": [np.ones(9, bool)]}, split="test")) is None


def test_a_single_block_is_not_called_the_best(tmp_path):
    assert confidence(sweep_of(tmp_path, {"4": [np.ones(9, bool)]})) is None


def test_blocks_without_any_error_may_all_be_the_best(tmp_path):
    sure = confidence(sweep_of(tmp_path, {str(block): [np.ones(50, bool)] for block in range(4)}))
    assert set(sure.scopes) == {"0", "1", "2", "3"}
