"""Start ten copies of one command at once and count how often each cell is trained.

python experiments/reliability/copies.py        # about three minutes, no download
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
    """Run the copies and compare their records with those of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken, results = Path(folder) / "unbroken", Path(folder) / "results"
        finish(unbroken)
        copies = [start(results) for _ in range(COPIES)]
        outputs = [copy.communicate()[0] for copy in copies]
        codes = [copy.returncode for copy in copies]
        trained: Counter[str] = Counter()
        for output in outputs:  # after the first epoch, a run prints the cells that it trains and their accuracies
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
