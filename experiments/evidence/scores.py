"""Which score, computed before any training, finds a good block? Compute all scores, and compare them with the sweeps.

    python -m experiments.evidence.scores flowers5 data.root=<folder> models=efficientnet_lite0
    python -m experiments.evidence.scores

With a data set, it computes the scores of its sweeps (arguments as for `sweeps.py`; those in `results/scores.json` are
skipped). Without one, it prints how far each score agrees with the test accuracy of blocks after training, and writes
that to `src/blockwise/ranking/agreement.json`, which `blockwise rank` shows. The scores of a first seed are also
compared with the sweeps of other seeds: a score that finds a good block by chance does not find it again there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
from experiments.evidence.arrays import RESULTS, Cells, on, read_evidence
from experiments.evidence.collected import collect, collected
from rich.console import Console
from scipy.stats import kendalltau

import blockwise.ranking
from blockwise.config.compose import compose_config
from blockwise.ranking import score_names
from blockwise.study.study import Study

PATH = RESULTS / "scores.json"
AGREEMENT = Path(blockwise.ranking.__file__).with_name("agreement.json")

# by sweep and score: the values of the blocks, and the seconds that they took
Scores = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    """Compute what the command line asks for, or print the tables."""
    if len(sys.argv) == 1:
        report()
    else:
        collect(PATH, sys.argv[1:], compute)


def compute(_name: str, overrides: list[str]) -> dict[str, dict[str, object]]:
    """Return the values of each score by block, and the seconds that it took, those for decoding images left out."""
    study = Study.from_config(compose_config([*overrides, "results_dir=/tmp/blockwise-scores"]), Console(quiet=True))
    study.data.prepare(study.console)
    found: dict[str, dict[str, object]] = {}
    for name in score_names():
        start = perf_counter()
        values = study.ranking(name)
        found[name] = {
            "seconds": round(perf_counter() - start, 1),
            "values": [float(f"{v:.6g}") for v in values.values()],
        }
    return found


def report() -> None:
    """Print a table per data set, one of all, and one of other seeds."""
    scores: Scores = collected(PATH)
    evidence = read_evidence()
    sweeps = [cells for cells in evidence if cells.name in scores]
    others = [cells for cells in evidence if cells.name not in scores]
    for cells in others:
        scores[cells.name] = scores[replace(cells, seed=0).name]
    for cells in evidence:  # the rule that prefers late blocks
        scores[cells.name]["depth"] = {"values": range(len(cells.blocks)), "seconds": 0.0}
    for data in (*sorted({cells.data for cells in sweeps}), "all"):
        show(data, on(data, sweeps), scores)
    show("all with other seeds, by the scores of the first seed", others, scores)
    agreement = {score: agreements(score, sweeps, scores) for score in score_names()}
    summary = {name: [round(f(taus), 2) for f in (fmean, min, max)] for name, taus in agreement.items()}
    AGREEMENT.write_text(json.dumps({"sweeps": len(sweeps), "tau": summary}, indent=1) + "\n")


def show(title: str, sweeps: list[Cells], scores: Scores) -> None:
    """Print a row per score, and one of the choice by validation after all blocks have trained."""
    print(f"\n{title}: {len(sweeps)} sweeps\n")
    print("| score | Kendall's tau-b (lowest, highest) | regret of the first | of the best of three | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for score in (*score_names(), "depth"):
        print(f"| {score} | {' | '.join(figures(score, sweeps, scores))} |")
    print(f"| validation, all trained | | {fmean(cells.regret(cells.chosen) for cells in sweeps):.2f} | | |")


def agreements(score: str, sweeps: list[Cells], scores: Scores) -> list[float]:
    """Return Kendall's tau-b between a score and the test accuracy of blocks, for each sweep."""
    found = []
    for cells in sweeps:
        values = scores[cells.name][score]["values"]
        found.append(float(np.nan_to_num(kendalltau(values, cells.test[cells.at_best_rates]).statistic)))
    return found


def figures(score: str, sweeps: list[Cells], scores: Scores) -> list[str]:
    """Return the figures of a score."""
    first, of_three, seconds = [], [], []
    taus = agreements(score, sweeps, scores)
    for cells in sweeps:
        entry = scores[cells.name][score]
        values = np.array(entry["values"], float)
        order = sorted(range(len(values)), key=lambda block: (values[block], block), reverse=True)
        first.append(cells.regret(cells.at_best_rates[order[0]]))
        best = max((cells.at_best_rates[block] for block in order[:3]), key=lambda cell: cells.score[cell])
        of_three.append(cells.regret(best))
        seconds.append(float(str(entry["seconds"])))
    return [
        f"{fmean(taus):+.2f} ({min(taus):+.2f}, {max(taus):+.2f})",
        f"{fmean(first):.2f}",
        f"{fmean(of_three):.2f}",
        f"{fmean(seconds):.0f}",
    ]


if __name__ == "__main__":
    main()
