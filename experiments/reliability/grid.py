"""The small grid of the reliability experiments: two jobs of five cells, no download."""

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
    "optimizer.lr=0.001",
    "seed=0,1",
]
CELLS = 10
OWN_TO_A_RUN = {"seconds", "peak_memory_bytes", "provenance"}


def start(results: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start the grid in a new process."""
    command = [sys.executable, "train.py", *OVERRIDES, f"results_dir={results}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(results: Path) -> None:
    """Run the grid and wait for its end; exit if it fails."""
    process = start(results)
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"the grid failed:\n{output}")


def kept(results: Path) -> dict[str, tuple]:
    """Return record, history and weights of every cell, without the fields that differ between any two runs."""
    cells = {}
    for path in sorted(results.rglob("record.json")):
        record = {key: value for key, value in json.loads(path.read_text()).items() if key not in OWN_TO_A_RUN}
        files = [(path.parent / name).read_bytes() for name in ("history.csv", "weights.safetensors")]
        cells[str(path.relative_to(results))] = (record, *files)
    return cells


def verdict(expected: dict[str, tuple], actual: dict[str, tuple]) -> dict[str, int]:
    """Count the cells that are identical to the expected ones, missing, different, or duplicated."""
    return {
        "identical": sum(actual.get(cell) == content for cell, content in expected.items()),
        "missing": len(expected.keys() - actual.keys()),
        "different": sum(cell in actual and actual[cell] != content for cell, content in expected.items()),
        "doubled": len(actual.keys() - expected.keys()),
    }
