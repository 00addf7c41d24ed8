"""Train one of the paper's grids and write its table.

    python experiments/paper/table.py flowers102 --data data
    python experiments/paper/table.py flowers102 plan=true      estimated cost; trains nothing
    python experiments/paper/table.py demo

Further settings, such as `hydra/launcher=ray trainer=gpu`, are passed to every run. The table is written even if some
jobs fail. The exit status is that of the first failed command.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GRIDS = sorted(path.stem for path in HERE.glob("*.yaml") if not path.stem.startswith("_"))
TRAIN = [sys.executable, "train.py", "-m", "--config-dir", "experiments"]

Command = list[str]


def train_commands(grid: str, data: Path, overrides: list[str]) -> list[Command]:
    """Return the multiruns of a grid.

    Args:
        grid: Name of a file in this folder, such as `flowers102`.
        data: The folder that contains all data sets.
        overrides: Settings for every run.
    """
    if grid == "demo":
        runs = demo_runs(data)
    else:
        runs = [[f"data.root={data / 'flower_photos' if grid == 'tf_flowers' else data}"]]
    return [[*TRAIN, f"+paper={grid}", *run, *overrides] for run in runs]


def demo_runs(data: Path) -> list[Command]:
    """Return the settings of the demo's multiruns: those that need no download, and Caltech-101 if it is in `data`."""
    lite = "model=efficientnet_lite0 partition=segment data=digits"
    # networks small enough to train from random weights
    tiny = (
        "model=timm model.name=test_resnet,test_efficientnet model.pretrained=false "
        "data=digits data.image_size=32 partition=segment partition.num_blocks=8"
    )
    # one seed and few, small images: otherwise this takes hours on two cores
    caltech = (
        "model=efficientnet_lite0 partition=segment data=caltech101 data.image_size=96 "
        "data.train_per_class=5 data.val_per_class=1 data.test_per_class=2 seed=0"
    )
    runs = [lite.split(), tiny.split()]
    if (ROOT / data / "caltech101").is_dir():
        runs.append([*caltech.split(), f"data.root={data}"])
    return runs


def table_command(grid: str) -> Command:
    """Return the command that writes the table of a grid's records."""
    files = [f"--out=experiments/paper/results/{grid}.{suffix}" for suffix in ("md", "csv")]
    return [sys.executable, "-m", "blockwise", "table", f"results/paper/{grid}", "--backbones", *files]


def commands(grid: str, data: Path, overrides: list[str]) -> list[Command]:
    """Return all commands of a grid, in order; a plan records nothing, so it has no table."""
    training = train_commands(grid, data, overrides)
    return training if "plan=true" in overrides else [*training, table_command(grid)]


def call(command: Command) -> int:
    """Run a command in the root of the repository; return its exit status, 128 + signal if a signal ended it."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        # the command also receives Ctrl-C and saves its cells before it ends: wait for that
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
    return status if status >= 0 else 128 - status


def main() -> int:
    """Run the commands; return the first exit status other than 0."""
    parser = argparse.ArgumentParser(description="Train one of the paper's grids and write its table.")
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("overrides", nargs="*", help="settings for every run, such as plan=true or trainer=gpu")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("BLOCKWISE_DATA") or "data"),
        help="folder of all data sets, relative to the repository root (default: $BLOCKWISE_DATA, or else data)",
    )
    options = parser.parse_intermixed_args()
    (ROOT / "experiments/paper/results").mkdir(exist_ok=True)
    first = 0
    for command in commands(options.grid, options.data, options.overrides):
        status = call(command)
        first = first or status
        if status > 128:  # interrupted: the same command continues
            break
    return first


if __name__ == "__main__":
    sys.exit(main())
