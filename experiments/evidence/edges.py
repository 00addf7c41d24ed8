"""What do the baselines gain from a rate beyond the three of the recipe? `head` a higher one, `full` a lower one.

    python -m experiments.evidence.edges flowers5 data.root=<folder> seeds=0 models=efficientnet_lite0
    python -m experiments.evidence.edges

The higher rate of `head` is in the sweeps already. With a data set, this trains `full` at the lower one (arguments as
for `sweeps.py`; those in `results/edges.json` are skipped). Without one, it prints what a fourth rate, chosen on
validation, changes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from experiments.evidence.arrays import RESULTS, Cells, read_evidence
from experiments.evidence.collected import collect, collected, name_of
from experiments.evidence.sweeps import RECORDS, ROOT

from blockwise.results import read_records

PATH = RESULTS / "edges.json"
HEAD, FULL = 0.0125, 0.00002


def main() -> None:
    """Train what the command line asks for, or print the table."""
    if len(sys.argv) == 1:
        report()
    else:
        collect(PATH, sys.argv[1:], train)


def train(name: str, overrides: list[str]) -> dict[str, float]:
    """Train `full` at the rate beyond; return its validation and test accuracy."""
    folder = RECORDS / "edges" / name
    own = ["block=full", f"optimizer.lr={FULL}", f"results_dir={folder}"]
    subprocess.run([sys.executable, "train.py", *overrides, *own], check=True, cwd=ROOT)
    (record,) = read_records(folder)
    shutil.rmtree(folder)
    if record.status != "finished":
        return {"val": 0.0, "test": 0.0}
    return {split: record.score(split) for split in ("val", "test")}


def report() -> None:
    """Print a row per baseline."""
    print("| baseline | rate | sweeps | chosen on validation | gain on test, points: mean (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    sweeps, beyond = read_evidence(), collected(PATH)
    show("head", HEAD, [head_gain(cells) for cells in sweeps])
    show("full", FULL, [full_gain(cells, beyond[name_of(cells)]) for cells in sweeps if name_of(cells) in beyond])


def head_gain(cells: Cells) -> float | None:
    """Return the gain in test accuracy from the fourth rate; None if validation does not choose it."""
    with_all = cells.of("head")
    without = cells.of("head", np.where(np.isclose(cells.lr, HEAD), -np.inf, cells.score))
    return 100 * float(cells.test[with_all] - cells.test[without]) if with_all != without else None


def full_gain(cells: Cells, new: Mapping[str, float]) -> float | None:
    """Return the same for `full`."""
    cell = cells.of("full")
    return 100 * (new["test"] - float(cells.test[cell])) if new["val"] > cells.correct[cell].mean() + 1e-9 else None


def show(scope: str, rate: float, gains: Sequence[float | None]) -> None:
    """Print the row of a baseline; sweeps in which the rate is not chosen gain nothing."""
    points, chosen = [gain or 0.0 for gain in gains], sum(gain is not None for gain in gains)
    gain = f"{fmean(points):+.2f} ({min(points):+.1f}, {max(points):+.1f})"
    print(f"| {scope} | {rate:g} | {len(gains)} | {chosen} | {gain} |")


if __name__ == "__main__":
    main()
