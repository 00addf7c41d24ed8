"""Do the baselines gain from rates beyond those of the sweeps? `head` at a higher one, `full` at a lower one.

    python -m experiments.evidence.edges flowers5 data.root=<folder> seeds=0 models=efficientnet_lite0
    python -m experiments.evidence.edges

With a data set, it trains both (arguments as for `sweeps.py`; those in `results/edges.json` are skipped). Without one,
it prints what a fourth rate, chosen on validation, would have changed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from experiments.evidence.arrays import RESULTS, read_evidence
from experiments.evidence.collected import collect, collected, name_of
from experiments.evidence.sweeps import RECORDS, ROOT

from blockwise.results import read_records

PATH = RESULTS / "edges.json"
BEYOND = {"head": 0.0125, "full": 0.00002}


def main() -> None:
    """Train what the command line asks for, or print the table."""
    if len(sys.argv) == 1:
        report()
    else:
        collect(PATH, sys.argv[1:], both)


def both(name: str, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Train both baselines of a sweep."""
    return {scope: train(scope, overrides, RECORDS / "edges" / name) for scope in BEYOND}


def train(scope: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """Train a baseline at the rate beyond; return its validation and test accuracy."""
    own = [f"block={scope}", f"optimizer.lr={BEYOND[scope]}", f"results_dir={folder}"]
    subprocess.run([sys.executable, "train.py", *overrides, *own], check=True, cwd=ROOT)
    (record,) = [record for record in read_records(folder) if record.cell.scope == scope]
    shutil.rmtree(folder)
    if record.status != "finished":
        return {"val": 0.0, "test": 0.0}
    return {split: record.score(split) for split in ("val", "test")}


def report() -> None:
    """Print a row per baseline."""
    beyond = collected(PATH)
    sweeps = [cells for cells in read_evidence() if name_of(cells) in beyond]
    print("| baseline | rate | sweeps | chosen on validation | gain on test, points: mean (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    for scope, rate in BEYOND.items():
        chosen, gains = 0, []
        for cells in sweeps:
            cell, new = cells.of(scope), beyond[name_of(cells)][scope]
            better = new["val"] > cells.correct[cell].mean() + 1e-9
            chosen += better
            gains.append(100 * (new["test"] - float(cells.test[cell])) if better else 0.0)
        gain = f"{fmean(gains):+.2f} ({min(gains):+.1f}, {max(gains):+.1f})"
        print(f"| {scope} | {rate:g} | {len(sweeps)} | {chosen} | {gain} |")


if __name__ == "__main__":
    main()
