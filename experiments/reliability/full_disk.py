"""Fill the disk of a small grid at random times, free it, start the grid again, and compare with an uninterrupted run.

sudo python experiments/reliability/full_disk.py        # about six minutes; needs root to mount a tmpfs
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

from grid import finish, kept, start, verdict

HERE = Path(__file__).parent
MOMENTS = 10


def main() -> None:
    """Run the grid with a full disk ten times, and count missing and different records."""
    random.seed(0)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        unbroken, disk = Path(folder) / "unbroken", Path(folder) / "disk"
        since = time.monotonic()
        finish(unbroken)
        longest = time.monotonic() - since
        disk.mkdir()
        while len(runs) < MOMENTS:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
            try:
                said = _fill(disk, random.uniform(0.2, 0.9) * longest)
                if said is None:  # the grid ended before the disk was full
                    continue
                between = verdict(kept(unbroken), kept(disk / "results"))
                finish(disk / "results")
                runs.append(
                    {"said": said, "lies": between["different"], **verdict(kept(unbroken), kept(disk / "results"))}
                )
                print(runs[-1], flush=True)
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)
    counts = {key: sum(run[key] for run in runs) for key in ("lies", "identical", "missing", "different", "doubled")}
    report = {"moments": len(runs), "cells": counts, "said": sorted({run["said"] for run in runs})}
    (HERE / "results" / "full_disk.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def _fill(disk: Path, seconds: float) -> str | None:
    """Run the grid and fill its disk after `seconds`; return the grid's last message, or None if it did not fail."""
    process = start(disk / "results")
    time.sleep(seconds)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while process.poll() is None:
                file.write(bytes(2**12))
        except OSError:
            pass
    output = process.communicate()[0]
    filler.unlink()
    if process.returncode == 0:
        return None
    reasons = [line.strip() for line in output.splitlines() if "space" in line or "written" in line or "disk" in line]
    return reasons[-1].replace(str(disk), "DISK") if reasons else output.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
