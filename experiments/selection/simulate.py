"""How often does a set of blocks contain the best one? Made-up predictions, so that the best block is known.

    python experiments/selection/simulate.py           # some minutes on one core; needs `pip install arch`

Twelve blocks classify the same validation images; some images are hard for all of them (a probit model, in which the
difficulty of an image explains 60 % of the variance). Their true accuracies have a mean of 85 % and a standard
deviation of `spread`: independent, or smooth over depth; or three blocks are 25 points worse than the others, as blocks
next to the head can be. Three sets with a nominal level of 90 % are compared:

- `ours`: `blockwise.analysis.uncertainty.confidence`.
- `bootstrap`: the smallest set whose shares of 1,000 paired bootstrap samples in which a block has the highest accuracy
  add up to 90 %.
- `MCS`: the Model Confidence Set of Hansen, Lunde & Nason (2011) in the package arch, statistic T_max, 1,000 samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from arch.bootstrap import MCS
from scipy.stats import norm

from blockwise.analysis.uncertainty.confidence import from_scores

HERE = Path(__file__).parent
BLOCKS, TIMES, LEVEL = 12, 300, 0.9
SCOPES = [str(block) for block in range(BLOCKS)]
SMOOTH = np.linalg.cholesky(
    np.exp(-0.5 * ((np.arange(BLOCKS)[:, None] - np.arange(BLOCKS)) / 2.5) ** 2) + 0.1 * np.eye(BLOCKS)
)


def main() -> None:
    """Write results/simulated.csv and print it."""
    lines = []
    for images in (25, 50, 100, 200, 500):
        for spread in (0.0, 0.01, 0.03, 0.06):
            for smooth, worse in ((False, 0), (True, 0), (False, 3)) if spread else ((False, 0),):
                lines.append(compare(np.random.default_rng(0), images, spread, smooth, worse))
                print(lines[-1], flush=True)
    frame = pd.DataFrame(lines)
    frame.to_csv(HERE / "results" / "simulated.csv", index=False)
    print(frame.drop(columns=["images", "spread", "smooth", "worse"]).mean().round(3).to_string())


def compare(random: np.random.Generator, images: int, spread: float, smooth: bool, worse: int) -> dict[str, float]:
    """Return how often each set contains the best block, and its mean size; the last `worse` blocks are far worse."""
    inside: dict[str, list[bool]] = {}
    size: dict[str, list[int]] = {}
    for _ in range(TIMES):
        effects = random.normal(size=BLOCKS)
        true = 0.85 + spread * (SMOOTH @ effects if smooth else effects) - 0.25 * (np.arange(BLOCKS) >= BLOCKS - worse)
        accuracies = np.clip(true, 0.02, 0.995)
        difficulty, own = random.normal(size=(images, 1)), random.normal(size=(images, BLOCKS))
        scores = (norm.ppf(accuracies) + np.sqrt(0.6) * difficulty + np.sqrt(0.4) * own > 0).astype(float)
        for name, found in sets(random, scores).items():
            # without any spread, each block is as good as the best one
            inside.setdefault(name, []).append(int(accuracies.argmax()) in found)
            size.setdefault(name, []).append(len(found))
    rows = {"images": images, "spread": spread, "smooth": smooth, "worse": worse}
    return rows | {f"{name}, coverage": round(float(np.mean(values)), 3) for name, values in inside.items()} | {
        f"{name}, size": round(float(np.mean(values)), 1) for name, values in size.items()
    }  # fmt: skip


def sets(random: np.random.Generator, scores: np.ndarray) -> dict[str, set[int]]:
    """Return the sets of blocks; scores have shape (images, blocks)."""
    weights = random.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), 1000) / len(scores)
    sampled = weights @ scores
    tied = sampled >= sampled.max(1, keepdims=True) - 1e-9
    # on few images, blocks often predict the same, and arch does not end where losses are identical
    losses = 1 - scores + 1e-6 * random.normal(size=scores.shape)
    mcs = MCS(losses, 1 - LEVEL, reps=1000, block_size=1, method="max", bootstrap="circular", seed=0)
    mcs.compute()
    return {
        "ours": set(map(int, from_scores(SCOPES, [scores], LEVEL, draws=2000).scopes)),
        "bootstrap": smallest((tied / tied.sum(1, keepdims=True)).mean(0)),
        "MCS": set(map(int, mcs.included)),
    }


def smallest(probabilities: np.ndarray) -> set[int]:
    """Return the smallest set with a probability of `LEVEL`."""
    order = np.argsort(-probabilities, kind="stable")
    return set(order[: np.searchsorted(np.cumsum(probabilities[order]), LEVEL - 1e-9) + 1].tolist())


if __name__ == "__main__":
    main()
