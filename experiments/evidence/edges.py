"""What does a scope gain from further rates? `full` from two below its best one, `head` and blocks from a higher one.

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
from experiments.evidence.analysis.blocks import estimate, means
from experiments.evidence.arrays import EVIDENCE, RESULTS, Cells, on, pairs, read_evidence
from experiments.evidence.collected import collected, keep
from experiments.evidence.sweeps import RECORDS, ROOT, asked

from blockwise.results import read_records

PATH = RESULTS / "edges.json"
HIGHER, LOWER, BETWEEN = 0.0125, 0.00002, 0.0002
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
    """Print a row per scope and rate; then what remains of the best block's gain if `full` has all rates."""
    sweeps, beyond = read_evidence(), collected(PATH)
    of = [(cells, beyond.get(cells.name, {})) for cells in sweeps]
    print("| scope | rate | sweeps | chosen on validation | gain on test, points: mean (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    show("head", HIGHER, [head_gain(cells) for cells in sweeps])
    for rate in (LOWER, BETWEEN):
        name = cell("full", rate)
        show("full", rate, [gain(cells, cells.of("full"), new[name]) for cells, new in of if name in new])
    show("best block", HIGHER, [block_gain(cells, new) for cells, new in of if cell("0", HIGHER) in new])
    show_full({cells.name: new for cells, new in of}, sweeps)


def show_full(beyond: Mapping[str, Scores], sweeps: Sequence[Cells]) -> None:
    """Print the best block's gain over `full` at three rates, and at five, where all were trained."""
    rates = {cell("full", rate) for rate in (LOWER, BETWEEN)}
    both = [cells for cells in sweeps if rates <= beyond[cells.name].keys()]
    print("\nGain of the best block, at three rates, over `full`: mean over pairs (95 % interval)\n")
    print("| data | sweeps | pairs | `full` at the same three | `full` at two more |\n| --- | --- | --- | --- | --- |")
    for data in (*EVIDENCE, "all"):
        if own := on(data, both):
            three = estimate(means(own, lambda cells: 100 * float(cells.test[cells.chosen] - full(cells, {}))))
            five = estimate(
                means(own, lambda cells: 100 * float(cells.test[cells.chosen] - full(cells, beyond[cells.name])))
            )
            print(f"| {data} | {len(own)} | {len(pairs(own))} | {three} | {five} |")


def full(cells: Cells, beyond: Scores) -> float:
    """Return the test accuracy of `full` at the rate that validation chooses, further rates included."""
    further = [scores for name, scores in beyond.items() if name.startswith("full@")]
    chosen = max(further, key=lambda scores: scores["val"], default=NOTHING)
    own = cells.of("full")
    return chosen["test"] if chosen["val"] > cells.correct[own].mean() + 1e-9 else float(cells.test[own])


def head_gain(cells: Cells) -> float | None:
    """Return the gain in test accuracy from the fourth rate; None if validation does not choose it."""
    with_all = cells.of("head")
    without = cells.of("head", np.where(np.isclose(cells.lr, HIGHER), -np.inf, cells.score))
    return 100 * float(cells.test[with_all] - cells.test[without]) if with_all != without else None


def block_gain(cells: Cells, new: Scores) -> float | None:
    """Return the same for the best block, which may be another one."""
    return gain(cells, cells.chosen, max((new[cell(block, HIGHER)] for block in BLOCKS), key=lambda one: one["val"]))


def gain(cells: Cells, own: int, new: Mapping[str, float]) -> float | None:
    """Return the same, given a cell, and the accuracies at the further rate."""
    return 100 * (new["test"] - float(cells.test[own])) if new["val"] > cells.correct[own].mean() + 1e-9 else None


def show(scope: str, rate: float, gains: Sequence[float | None]) -> None:
    """Print the row of a scope and a rate; sweeps in which the rate is not chosen gain nothing."""
    points, chosen = [gain or 0.0 for gain in gains], sum(gain is not None for gain in gains)
    gain = f"{fmean(points):+.2f} ({min(points):+.1f}, {max(points):+.1f})" if points else ""
    print(f"| {scope} | {rate:g} | {len(gains)} | {chosen} | {gain} |")


if __name__ == "__main__":
    main()
