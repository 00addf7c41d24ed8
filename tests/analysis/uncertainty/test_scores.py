"""Noise of scores, against resampling."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, f1_score

from blockwise.analysis.uncertainty.scores import contributions, covariance, of_mean, over_seeds, seed_variance
from blockwise.results import Predictions

RANDOM = np.random.default_rng(0)


def made_up(images=400, classes=5, accuracy=0.7):
    label = RANDOM.integers(0, classes, images)
    predicted = np.where(RANDOM.random(images) < accuracy, label, RANDOM.integers(0, classes, images))
    likelihood = -RANDOM.exponential(1, images)
    return Predictions(tuple("abcde"[:classes]), label, predicted, np.full(images, 0.5), likelihood)


def scikit_f1(kept, chosen):
    return f1_score(kept.label[chosen], kept.predicted[chosen], average="macro")


def scikit_balanced(kept, chosen):
    return balanced_accuracy_score(kept.label[chosen], kept.predicted[chosen])


SCORES = {
    "top1": lambda kept, chosen: kept.correct[chosen].mean(),
    "loss": lambda kept, chosen: kept.log_likelihood[chosen].mean(),
    "probability": lambda kept, chosen: np.exp(kept.log_likelihood[chosen]).mean(),
    "macro_f1": scikit_f1,
    "mean_per_class": scikit_balanced,
}


@pytest.mark.parametrize("metric", SCORES)
def test_a_score_and_its_noise_are_those_of_a_bootstrap(metric):
    kept = made_up()
    added = contributions(kept, metric)
    everything = np.arange(len(kept.label))
    assert added.mean() == pytest.approx(SCORES[metric](kept, everything))
    drawn = bootstrap(
        (everything,), lambda chosen: SCORES[metric](kept, chosen), n_resamples=999, method="basic", rng=RANDOM
    )
    assert np.sqrt(of_mean(added[:, None])[0, 0]) == pytest.approx(drawn.standard_error, rel=0.1)


def test_a_class_that_neither_is_nor_is_predicted_has_no_f1():
    kept = Predictions(tuple("abc"), np.array([0, 0, 1]), np.array([0, 1, 1]), np.ones(3), np.zeros(3))
    assert contributions(kept, "macro_f1").mean() == pytest.approx(
        f1_score(kept.label, kept.predicted, average="macro")
    )


def test_rows_that_err_together_differ_with_little_noise():
    one = RANDOM.random(1000) < 0.8
    other = one.copy()
    other[:20] ^= True
    noise = of_mean(np.stack([one, other], 1).astype(float))
    assert np.sqrt(noise[0, 0]) == pytest.approx(0.0126, rel=0.1)
    assert np.sqrt([1, -1] @ noise @ [1, -1]) == pytest.approx(np.sqrt(0.02 / 1000), rel=0.1)


def test_few_images_do_not_make_differences_certain():
    scores = (RANDOM.random((20, 12)) < 0.8).astype(float)
    assert np.linalg.eigvalsh(of_mean(scores)).min() > 0.05 * np.linalg.eigvalsh(of_mean(scores)).max()


def grid(seeds, images, rows, of_seeds, *, same_images):
    """Scores with noise of images and seeds; its true variances are 0.16 per image and `of_seeds` ** 2."""
    shared = RANDOM.normal(0, 0.4, (images, rows))
    return [
        RANDOM.normal(0, of_seeds, rows) + (shared if same_images else RANDOM.normal(0, 0.4, (images, rows)))
        for _ in range(seeds)
    ]


@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize("of_seeds", [0.0, 0.05])
def test_seeds_and_images_are_told_apart(same_images, of_seeds):
    grids = [grid(3, 100, 6, of_seeds, same_images=same_images) for _ in range(200)]
    assert np.mean([seed_variance(one) for one in grids]) == pytest.approx(of_seeds**2, abs=5e-4)
    means = np.array([np.mean(over_seeds(one), axis=0) for one in grids])
    seen = np.var(means - means.mean(1, keepdims=True)) * 6 / 5
    expected = np.mean([np.trace(covariance(one)) / 6 for one in grids])
    assert expected == pytest.approx(seen, rel=0.3)  # no variance is estimated below 0


def test_seeds_of_different_numbers_of_images():
    drawn = [[RANDOM.normal(0, 1, (images, 3)) for images in (50, 100)] for _ in range(200)]
    assert over_seeds(drawn[0]) is None
    # no variance is estimated below 0, so that of seeds, which is 0, is a little more
    assert (1 / 50 + 1 / 100) / 4 < np.mean([covariance(scores)[0, 0] for scores in drawn]) < 2 * (1 / 50 + 1 / 100) / 4
