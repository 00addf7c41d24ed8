"""Starts ten copies of one command at once, and counts how often each cell was trained.

python experiments/reliability/copies.py        # about three minutes, nothing is downloaded
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from grid import CELLS, finish, kept, start, verdict

HERE = Path(__file__).parent
COPIES = 10


def main() -> None:
    """Run the copies, count, compare."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken, results = Path(folder) / "unbroken", Path(folder) / "results"
        finish(unbroken)
        copies = [start(results) for _ in range(COPIES)]
        outputs = [copy.communicate()[0] for copy in copies]
        codes = [copy.returncode for copy in copies]
        trained: Counter[str] = Counter()
        for output in outputs:  # after the first epoch, a run that trains names its cells and their accuracies
            for line in output.splitlines():
                if line.startswith("epoch 1/"):
                    trained.update(line.split()[2::2])
        report = {
            "copies": COPIES,
            "failed": sum(code != 0 for code in codes),
            "cells": CELLS,
            "trained": sum(trained.values()),
            **verdict(kept(unbroken), kept(results)),
        }
    (HERE / "results" / "copies.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
