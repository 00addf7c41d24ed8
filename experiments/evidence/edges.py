"""What does a scope gain from a fourth rate? `full` from a lower one, `head` and blocks from a higher one.

    python -m experiments.evidence.edges flowers5 data.root=<folder> seeds=0 models=efficientnet_lite0
    python -m experiments.evidence.edges

The higher rate of `head` is in the sweeps already. With a data set, this trains `full` at the lower rate and each block
at the higher one (arguments as for `sweeps.py`; sweeps in `results/edges.json` are skipped). Without one, it prints
what a fourth rate, chosen on validation, changes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from experiments.evidence.arrays import RESULTS, Cells, read_evidence
from experiments.evidence.collected import collect, collected, name_of
from experiments.evidence.sweeps import RECORDS, ROOT

from blockwise.results import read_records

PATH = RESULTS / "edges.json"
HIGHER, LOWER = 0.0125, 0.00002
NOTHING = {"val": 0.0, "test": 0.0}  # a cell that diverged


def main() -> None:
    """Train what the command line asks for, or print the table."""
    if len(sys.argv) == 1:
        report()
    else:
        collect(PATH, sys.argv[1:], train)


def train(name: str, overrides: list[str]) -> dict[str, Any]:
    """Train `full` and the blocks at the rates beyond; return their validation and test accuracies."""
    folder = RECORDS / "edges" / name
    blocks = [str(block) for block in range(12)]
    for scopes, rate in (("full", LOWER), (f"[{','.join(blocks)}]", HIGHER)):
        own = [f"block={scopes}", f"optimizer.lr={rate}", f"results_dir={folder}"]
        subprocess.run([sys.executable, "train.py", *overrides, *own], check=True, cwd=ROOT)
    found = {record.cell.scope: record for record in read_records(folder) if record.status == "finished"}
    shutil.rmtree(folder)
    scores = {
        scope: {split: round(record.score(split), 6) for split in ("val", "test")} for scope, record in found.items()
    }
    return {"full": scores.get("full", NOTHING), "blocks": {block: scores.get(block, NOTHING) for block in blocks}}


def report() -> None:
    """Print a row per kind of scope."""
    print("| scope | rate | sweeps | chosen on validation | gain on test, points: mean (lowest, highest) |")
    print("| --- | --- | --- | --- | --- |")
    sweeps, beyond = read_evidence(), collected(PATH)

    def of(kind: str) -> list[tuple[Cells, Any]]:
        found = [(cells, beyond.get(name_of(cells), {}).get(kind)) for cells in sweeps]
        return [(cells, new) for cells, new in found if new is not None]

    show("head", HIGHER, [head_gain(cells) for cells in sweeps])
    show("full", LOWER, [gain(cells, cells.of("full"), new) for cells, new in of("full")])
    show("best block", HIGHER, [block_gain(cells, new) for cells, new in of("blocks")])


def head_gain(cells: Cells) -> float | None:
    """Return the gain in test accuracy from the fourth rate; None if validation does not choose it."""
    with_all = cells.of("head")
    without = cells.of("head", np.where(np.isclose(cells.lr, HIGHER), -np.inf, cells.score))
    return 100 * float(cells.test[with_all] - cells.test[without]) if with_all != without else None


def block_gain(cells: Cells, new: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return the same for the best block, which may be another one."""
    return gain(cells, cells.chosen, max(new.values(), key=lambda scores: scores["val"]))


def gain(cells: Cells, cell: int, new: Mapping[str, float]) -> float | None:
    """Return the same, given a cell, and the accuracies at the fourth rate."""
    return 100 * (new["test"] - float(cells.test[cell])) if new["val"] > cells.correct[cell].mean() + 1e-9 else None


def show(scope: str, rate: float, gains: Sequence[float | None]) -> None:
    """Print the row of a kind of scope; sweeps in which the rate is not chosen gain nothing."""
    points, chosen = [gain or 0.0 for gain in gains], sum(gain is not None for gain in gains)
    gain = f"{fmean(points):+.2f} ({min(points):+.1f}, {max(points):+.1f})"
    print(f"| {scope} | {rate:g} | {len(gains)} | {chosen} | {gain} |")


if __name__ == "__main__":
    main()
