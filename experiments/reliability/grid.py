"""The small grid that is killed, starved and run many times over: two jobs of five cells, no download."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "-m",
    "model=timm",
    "model.name=test_resnet",
    "model.pretrained=false",
    "data=digits",
    "data.image_size=32",
    "data.train_per_class=40",
    "data.test_per_class=20",
    "partition.num_blocks=3",
    "trainer=cpu",
    "trainer.max_epochs=6",
    "checkpoint.every_minutes=0.01",
    "block=head,0,1,2,full",
    "seed=0,1",
]
CELLS = 10
OWN_TO_A_RUN = {"seconds", "peak_memory_bytes", "provenance"}


def start(results: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start the grid in a process of its own."""
    command = [sys.executable, "train.py", *OVERRIDES, f"results_dir={results}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(results: Path) -> None:
    """Run the grid to its end."""
    process = start(results)
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"the grid failed:\n{output}")


def kept(results: Path) -> dict[str, tuple]:
    """Return what is kept of every cell, byte for byte, but for what differs between any two runs."""
    found = {}
    for path in sorted(results.rglob("record.json")):
        record = {key: value for key, value in json.loads(path.read_text()).items() if key not in OWN_TO_A_RUN}
        files = [(path.parent / name).read_bytes() for name in ("history.csv", "weights.safetensors")]
        found[str(path.relative_to(results))] = (record, *files)
    return found


def verdict(expected: dict[str, tuple], found: dict[str, tuple]) -> dict[str, int]:
    """Count the cells that are as they should be, missing, different, and too many."""
    return {
        "identical": sum(found.get(cell) == kept for cell, kept in expected.items()),
        "missing": len(expected.keys() - found.keys()),
        "different": sum(cell in found and found[cell] != kept for cell, kept in expected.items()),
        "doubled": len(found.keys() - expected.keys()),
    }
