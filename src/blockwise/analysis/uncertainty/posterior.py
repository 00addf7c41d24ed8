"""Draws of the true scores of blocks, given their mean scores on validation images and the noise of these means."""

from __future__ import annotations

import numpy as np

DRAWS = 10_000
# standard deviations of the true scores that are considered, in units of their noise; smaller ones would all mean that
# blocks are equal, and count several times
SPREADS = np.geomspace(0.05, 30, 40)
# distances over which blocks are alike that are considered, as shares of the depth
LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)


def posterior(means: np.ndarray, noise: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Return draws of the true scores relative to their mean, shape (draws, rows); the same ones each time.

    A priori, the true scores are independent. Their spread is integrated out.

    Args:
        means: Mean scores, shape (rows,).
        noise: Their covariance, shape (rows, rows).
        draws: Number of draws.
    """
    rows = len(means)
    if rows == 1:
        return np.zeros((draws, 1))
    basis = _differences(rows)
    variances, axes = np.linalg.eigh(basis.T @ noise @ basis)
    # blocks that predict the same for every image have no noise
    variances = np.maximum(variances, max(1e-6 * variances.max(), 1e-18))
    axes = basis @ axes
    observed = axes.T @ means
    prior = (SPREADS[:, None] ** 2) * variances.mean()
    # the noise that all axes have on average decides: many blocks that predict alike would hide that one is far better
    average = prior + variances.mean()
    likelihood = -0.5 * (observed**2 / average + np.log(average)).sum(1)
    random = np.random.default_rng(0)
    chosen = random.choice(len(SPREADS), draws, p=_weights(likelihood))
    shrinkage = (prior / (prior + variances))[chosen]
    deviation = np.sqrt(shrinkage * variances)
    return np.asarray((shrinkage * observed + deviation * random.standard_normal((draws, rows - 1))) @ axes.T)


def smooth_posterior(means: np.ndarray, noise: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Return the same draws for true scores that are a Gaussian process over depth: neighbours are alike.

    The kernel is squared exponential (Rasmussen & Williams, 2006, "Gaussian Processes for Machine Learning", chapters 2
    and 4). Its variance and its length are integrated out.

    Args:
        means: Mean scores of the blocks, input side first, shape (rows,).
        noise: Their covariance, shape (rows, rows).
        draws: Number of draws.
    """
    rows = len(means)
    if rows == 1:
        return np.zeros((draws, 1))
    basis, depth = _differences(rows), np.linspace(0, 1, rows)
    noise = basis.T @ noise @ basis
    average = max(np.trace(noise) / (rows - 1), 1e-18)
    noise = noise + 1e-6 * average * np.eye(rows - 1)
    observed = basis.T @ means
    likelihood, expected, factors = [], [], []
    for length in LENGTHS:
        kernel = basis.T @ np.exp(-0.5 * ((depth[:, None] - depth) / length) ** 2) @ basis
        for spread in SPREADS:
            prior = spread**2 * average * kernel
            total = prior + noise
            gain = np.linalg.solve(total, prior).T
            log_determinant = np.linalg.slogdet(total).logabsdet
            likelihood.append(-0.5 * (observed @ np.linalg.solve(total, observed) + log_determinant))
            expected.append(gain @ observed)
            variances, axes = np.linalg.eigh(prior - gain @ prior)
            factors.append(axes * np.sqrt(np.maximum(variances, 0)))
    random = np.random.default_rng(0)
    chosen = random.choice(len(likelihood), draws, p=_weights(np.array(likelihood)))
    normal = random.standard_normal((draws, rows - 1))
    drawn = np.stack(expected)[chosen] + np.einsum("dij,dj->di", np.stack(factors)[chosen], normal)
    return np.asarray(drawn @ basis.T)


def _differences(rows: int) -> np.ndarray:
    """Return an orthonormal basis of the space without the mean, shape (rows, rows - 1): only differences matter."""
    return np.asarray(np.linalg.svd(np.eye(rows) - 1 / rows)[0][:, :-1])


def _weights(likelihood: np.ndarray) -> np.ndarray:
    weights = np.exp(likelihood - likelihood.max())
    return np.asarray(weights / weights.sum())
