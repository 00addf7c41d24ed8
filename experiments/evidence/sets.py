"""One block or several? The set that `search=greedy` finds, and the three best blocks jointly, against one and `full`.

    python -m experiments.evidence.sets digits seeds=0 models=efficientnet_lite0
    python -m experiments.evidence.sets

With a data set, it trains them (arguments as for `sweeps.py`; those in `results/sets.json` are skipped), at the same
rates and with the same recipe as the sweeps. Without one, it prints the table.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.evidence.arrays import RESULTS
from experiments.evidence.collected import collect, collected
from experiments.evidence.sweeps import RECORDS, ROOT

from blockwise.analysis.summary import Row, sweeps
from blockwise.results import read_records
from blockwise.results.record import Record

PATH = RESULTS / "sets.json"


def main() -> None:
    """Train what the command line asks for, or print the table."""
    if len(sys.argv) == 1:
        report()
    else:
        collect(PATH, sys.argv[1:], train)


def train(name: str, overrides: list[str]) -> dict[str, Any]:
    """Train the sets of a sweep, and everything that they are compared with."""
    folder = RECORDS / "sets" / name
    for own in (["search=greedy"], ["block=top3"]):
        command = [sys.executable, "train.py", f"results_dir={folder}", *overrides, *own]
        subprocess.run(command, check=True, cwd=ROOT)
    found = compared(read_records(folder))
    shutil.rmtree(folder)
    return found


def compared(records: Sequence[Record]) -> dict[str, Any]:
    """Return accuracy, parameters and cost of each kind of scope, each chosen on validation."""
    (sweep,) = sweeps(records)
    sets = [row for row in sweep.rows if row.records and "+" in row.scope]
    assert sweep.best is not None
    largest = max([sweep.best, *sets], key=lambda row: row.selection_score(row.seeds))
    kinds = {"head": sweep.row("head"), "best block": sweep.best, "greedy": largest}
    kinds |= {"top3": sweep.row("top3"), "full": sweep.row("full")}
    seconds = {kind: sum(r.seconds for r in records if belongs(r, kind)) for kind in kinds}
    return {kind: {**of_row(row), "seconds": round(seconds[kind])} for kind, row in kinds.items() if row is not None}


def of_row(row: Row) -> dict[str, Any]:
    """Return scope, accuracies and number of trained parameters."""
    scores = {split: round(row.mean(split), 4) for split in ("val", "test")}
    return {"scope": row.scope, **scores, "parameters": row.records[0].cell.trainable_parameters}


def belongs(record: Record, kind: str) -> bool:
    """Return whether a cell had to be trained to find a kind of scope; all rates count."""
    scope = record.cell.scope
    of_blocks = scope.isdigit()
    return {
        "best block": of_blocks,
        "greedy": of_blocks or "+" in scope,
        "top3": of_blocks or scope == "top3",
    }.get(kind, scope == kind)


def report() -> None:
    """Print a row per sweep and kind of scope."""
    print("| sweep | what | scope | validation, % | test, % | parameters | seconds of its cells |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, kinds in collected(PATH).items():
        for kind, row in kinds.items():
            accuracies = f"{100 * row['val']:.1f} | {100 * row['test']:.1f}"
            print(f"| {name} | {kind} | {row['scope']} | {accuracies} | {row['parameters']:,} | {row['seconds']} |")


if __name__ == "__main__":
    main()
