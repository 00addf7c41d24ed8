"""Kill a small grid at random times, start it again until it is complete, and compare with an uninterrupted run.

python experiments/reliability/kills.py --kills 50        # half an hour, no download
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from grid import finish, kept, start, verdict

HERE = Path(__file__).parent


def main() -> None:
    """Kill grids until the number of kills is reached, and count missing and different records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="minimum number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times")
    options = parser.parse_args()
    random.seed(options.seed)
    grids, kills = [], {"job": 0, "multirun": 0}
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder) / "unbroken"
        since = time.monotonic()
        finish(unbroken)
        longest = time.monotonic() - since
        expected = kept(unbroken)
        while sum(kills.values()) < options.kills:
            results = Path(folder) / str(len(grids))
            while not _run(results, kills, longest):
                pass
            finish(results)  # one more run must train nothing and change nothing
            grids.append(verdict(expected, kept(results)))
            print(f"{sum(kills.values())} kills, grid {len(grids)}: {grids[-1]}", flush=True)
    report = {"kills": kills, "grids": len(grids), "cells": {key: sum(g[key] for g in grids) for key in grids[0]}}
    (HERE / "results" / "kills.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def _run(results: Path, kills: dict[str, int], longest: float) -> bool:
    """Start the grid and kill it or one of its jobs at a random time; return True if it ended before that."""
    process = start(results)
    until = time.monotonic() + random.uniform(0.2, 1.0) * longest
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return process.returncode == 0
    jobs = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victim = "job" if jobs and random.random() < 0.5 else "multirun"
    os.kill(int(jobs[0]) if victim == "job" else process.pid, signal.SIGKILL)
    if victim == "multirun" and jobs and random.random() < 0.5:  # kill the job too, or let it save and end
        os.kill(int(jobs[0]), signal.SIGKILL)
    kills[victim] += 1
    process.communicate()
    return False


if __name__ == "__main__":
    main()
