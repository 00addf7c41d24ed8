"""What do scopes gain from further rates: a higher or a lower one, and one between the two best ones of the sweeps?

    python -m experiments.evidence.edges flowers5 data.root=<folder> seeds=0 scope=full rate=0.0002
    python -m experiments.evidence.edges

The higher rate of `head` is in the sweeps already. With a data set, this trains a scope or all blocks (`scope=blocks`)
at a rate (other arguments as for `sweeps.py`; what `results/edges.json` has is skipped). Without one, it prints what
further rates change, chosen on validation.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from experiments.evidence.analysis.blocks import Value, estimate, means
from experiments.evidence.arrays import EVIDENCE, RESULTS, Cells, on, pairs, read_evidence
from experiments.evidence.collected import collected, keep
from experiments.evidence.sweeps import RECORDS, ROOT, asked

from blockwise.results import read_records

PATH = RESULTS / "edges.json"
HIGHER = 0.0125
FURTHER = {"head": (0.005,), "full": (0.00002, 0.0002), "best block": (0.001, HIGHER)}
BLOCKS = tuple(map(str, range(12)))
NOTHING = {"val": 0.0, "test": 0.0}  # a cell that diverged
# validation and test accuracy by scope and rate
Scores = Mapping[str, Mapping[str, float]]


def main() -> None:
    """Train what the command line asks for, or print the tables."""
    if len(sys.argv) == 1:
        report()
        return
    own = dict(word.split("=", 1) for word in sys.argv[1:] if word.startswith(("scope=", "rate=")))
    scopes = BLOCKS if own["scope"] == "blocks" else (own["scope"],)
    cells = [cell(scope, float(own["rate"])) for scope in scopes]
    for file, key, overrides in asked([word for word in sys.argv[1:] if not word.startswith(("scope=", "rate="))]):
        name = f"{file.stem}/{key}"
        if not set(cells) <= collected(PATH).get(name, {}).keys():
            keep(PATH, name, train(f"{name}/{own['scope']}", overrides, scopes, float(own["rate"])))


def cell(scope: str, rate: float) -> str:
    """Return the name of a cell."""
    return f"{scope}@{rate:g}"


def train(name: str, overrides: list[str], scopes: Sequence[str], rate: float) -> dict[str, Any]:
    """Train scopes of a sweep at a rate; return their validation and test accuracies."""
    folder = RECORDS / "edges" / f"{name}@{rate:g}"
    own = [f"block=[{','.join(scopes)}]", f"optimizer.lr={rate}", f"results_dir={folder}"]
    subprocess.run([sys.executable, "train.py", *overrides, *own], check=True, cwd=ROOT)
    found = {record.cell.scope: record for record in read_records(folder) if record.status == "finished"}
    shutil.rmtree(folder)
    scores = {
        scope: {split: round(record.score(split), 6) for split in ("val", "test")} for scope, record in found.items()
    }
    return {cell(scope, rate): scores.get(scope, NOTHING) for scope in scopes}


def report() -> None:
    """Print a row per scope and rate; then the best block's gains if each scope has a rate more around its best one."""
    sweeps, beyond = read_evidence(), collected(PATH)
    print("| scope | rate | sweeps | chosen on validation | gain on test, points: mean (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    show("head", HIGHER, [head_gain(cells) for cells in sweeps])
    for name, rate in ((name, rate) for name, rates in FURTHER.items() for rate in rates):
        scopes = BLOCKS if name == "best block" else (name,)
        own = [cells for cells in sweeps if cell(scopes[0], rate) in beyond.get(cells.name, {})]
        show(name, rate, [gain(cells, beyond[cells.name], scopes, rate) for cells in own])
    show_gains(beyond, sweeps)


def show_gains(beyond: Mapping[str, Scores], sweeps: Sequence[Cells]) -> None:
    """Print the best block's gains at the rates of the sweeps, and at all, where each scope has a rate in between."""
    between = {cell("head", 0.005), cell("full", 0.0002), cell(BLOCKS[0], 0.001)}
    refined = [cells for cells in sweeps if between <= beyond.get(cells.name, {}).keys()]
    print("\nGain of the best block: mean over pairs (95 % interval)\n")
    columns = [
        f"over {name}, {rates}" for name in ("head", "full") for rates in ("rates of the sweeps", "further ones")
    ]
    print(f"| data | sweeps | pairs | {' | '.join(columns)} |\n| --- | --- | --- | --- | --- | --- | --- |")
    for data in (*EVIDENCE, "all"):
        if own := on(data, refined):
            values = [
                estimate(means(own, over(baseline, further)))
                for baseline in ("head", "full")
                for further in ({}, beyond)
            ]
            print(f"| {data} | {len(own)} | {len(pairs(own))} | {' | '.join(values)} |")


def over(baseline: str, beyond: Mapping[str, Scores]) -> Value:
    """Return the gain of the best block over a baseline, each at the rate that validation chooses, further ones too."""

    def value(cells: Cells) -> float:
        new = beyond.get(cells.name, {})
        return 100 * (chosen(cells, new, BLOCKS) - chosen(cells, new, (baseline,)))

    return value


def chosen(cells: Cells, new: Scores, scopes: Sequence[str]) -> float:
    """Return the test accuracy of the one of some scopes that validation chooses; of equals, a rate of the sweep."""
    own = cells.best(scopes)
    assert own is not None  # some rate of each scope has not diverged
    further = [scores for name, scores in new.items() if name.partition("@")[0] in scopes]
    best = max(further, key=lambda scores: scores["val"], default=NOTHING)
    return best["test"] if best["val"] > cells.correct[own].mean() + 1e-6 else float(cells.test[own])


def gain(cells: Cells, new: Scores, scopes: Sequence[str], rate: float) -> float | None:
    """Return the gain in test accuracy from a further rate; None if validation does not choose it."""
    at_rate = {name: scores for name, scores in new.items() if name in {cell(scope, rate) for scope in scopes}}
    before, after = (chosen(cells, one, scopes) for one in ({}, at_rate))
    return 100 * (after - before) if after != before else None


def head_gain(cells: Cells) -> float | None:
    """Return the same for the fourth rate of `head`, which is in the sweeps."""
    with_all = cells.of("head")
    without = cells.of("head", np.where(np.isclose(cells.lr, HIGHER), -np.inf, cells.score))
    return 100 * float(cells.test[with_all] - cells.test[without]) if with_all != without else None


def show(scope: str, rate: float, gains: Sequence[float | None]) -> None:
    """Print the row of a scope and a rate; sweeps in which the rate is not chosen gain nothing."""
    points, count = [gain or 0.0 for gain in gains], sum(gain is not None for gain in gains)
    gain = f"{fmean(points):+.2f} ({min(points):+.1f}, {max(points):+.1f})" if points else ""
    print(f"| {scope} | {rate:g} | {len(gains)} | {count} | {gain} |")


if __name__ == "__main__":
    main()
