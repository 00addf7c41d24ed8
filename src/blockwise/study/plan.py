"""The plan of a run (`plan=true`): the cells that it would train, and their estimated cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from blockwise.analysis.sweep_table import print_table
from blockwise.backbone.flops import mean_flops
from blockwise.backbone.partition import Partition
from blockwise.backbone.stages import bytes_of
from blockwise.fast.memory import peak_memory_bytes, reset_peak_memory
from blockwise.policies import Phase
from blockwise.study.worker import PLAN, report_plan
from blockwise.training.cells import Cell
from blockwise.training.module import BlockwiseModule

# the first step is slower, since it allocates memory and chooses algorithms
STEPS = 3


@dataclass(frozen=True)
class CellPlan:
    """The plan of one cell.

    Attributes:
        name: Scope, and learning rate if there are several.
        recorded: Whether the cell has a record.
        trainable: Number of trained parameters, including the head's; None if its blocks are not selected yet.
        flops: Floating-point operations of the cell alone per training image, forward and backward; None likewise.
    """

    name: str
    recorded: bool
    trainable: int | None
    flops: int | None


@dataclass(frozen=True)
class Costs:
    """Estimated cost of the cells without a record.

    Attributes:
        step_seconds: Seconds per training step of all cells.
        seconds: Seconds of training and evaluation if no cell stops early.
        memory_bytes: Peak memory of this process, or of its GPU.
        disk_bytes: Size of the weights in the records.
        checkpoint_bytes: Size of the checkpoint during training.
    """

    step_seconds: float = 0.0
    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    checkpoint_bytes: int = 0


def measure(
    module: BlockwiseModule, trainer: L.Trainer, size: int, batch_size: int, batches: dict[str, int], epochs: int
) -> Costs:
    """Train a few steps on noise and extrapolate the cost of a whole run.

    Args:
        module: The cells; their weights are spoilt afterwards.
        trainer: A trainer for one epoch, with a `Stopwatch` among its callbacks.
        size: Side of the images in pixels.
        batch_size: Images per batch.
        batches: Number of batches of `train`, `val` and `test`.
        epochs: Number of epochs of a whole run.
    """
    folds = len(module.of_folds[0])
    reset_peak_memory()
    trainer.fit(module, _noise(STEPS, size, batch_size, folds), _noise(1, size, batch_size, folds))
    (watch,) = (callback for callback in trainer.callbacks if isinstance(callback, Stopwatch))  # type: ignore[attr-defined]
    epoch = batches["train"] * watch.step + batches["val"] * watch.evaluation
    weights = sum(bytes_of(network.trained_state().values()) for network in module.networks)
    moments = sum(bytes_of(state.values()) for o in trainer.optimizers for state in o.state.values())
    return Costs(
        step_seconds=watch.step,
        seconds=epochs * epoch + batches["test"] * watch.evaluation,
        memory_bytes=peak_memory_bytes(),
        disk_bytes=weights,
        checkpoint_bytes=2 * weights + moments,  # weights of the current and of the best epoch
    )


class Stopwatch(L.Callback):
    """Times training steps and evaluation batches; `step` is the shortest step, `evaluation` the last batch."""

    def __init__(self) -> None:
        self.step = float("inf")
        self.evaluation = 0.0
        self._since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the watch."""
        self._since = perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop the watch."""
        _wait()
        self.step = min(self.step, perf_counter() - self._since)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Start the watch."""
        self._since = perf_counter()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop the watch."""
        _wait()
        self.evaluation = perf_counter() - self._since


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _noise(batches: int, size: int, batch_size: int, folds: int) -> DataLoader[Any]:
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.long)
    batch = (images, labels, [row % folds for row in range(batch_size)]) if folds else (images, labels)
    return DataLoader([batch] * batches, batch_size=None)  # type: ignore[arg-type]


def describe(
    name: str,
    cell: Cell,
    phases: Sequence[Phase],
    partition: Partition,
    *,
    recorded: bool,
    trainable: int,
    networks: int = 1,
) -> CellPlan:
    """Return the plan of a cell.

    Args:
        name: The cell's name.
        cell: The cell.
        phases: What trains in each epoch.
        partition: The partition of the network.
        recorded: Whether the cell has a record.
        trainable: Number of trained parameters, including the head's.
        networks: Number of networks of the cell that train on an image.
    """
    if cell.scope.top is not None and not cell.scope.blocks:
        return CellPlan(name, recorded, None, None)
    flops = networks * mean_flops(partition, phases, whole=cell.scope.part == "all")
    return CellPlan(name, recorded, trainable, flops)


def show(console: Console, title: str, cells: Sequence[CellPlan], costs: Costs) -> None:
    """Print a plan; in a job of a multirun, also report it for the total over all jobs."""
    recorded = sum(cell.recorded for cell in cells)
    console.print(f"{title}: {len(cells)} cells, {recorded} of them already recorded", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scope")
    for heading in ("trainable", "own GFLOPs per image", ""):
        table.add_column(heading, justify="right")
    for cell in cells:
        cost = ("?", "?") if cell.trainable is None else (f"{cell.trainable:,}", f"{(cell.flops or 0) / 1e9:.2f}")
        table.add_row(cell.name, *cost, "recorded" if cell.recorded else "", style="dim" if cell.recorded else "")
    print_table(console, table)
    console.print(_sentence(costs) if recorded < len(cells) else "Nothing left to train.", highlight=False)
    report_plan({"cells": len(cells), "recorded": recorded, **asdict(costs)})


def _sentence(costs: Costs) -> str:
    return (
        f"At most {duration(costs.seconds)} on this machine, at {costs.step_seconds:.2f} s per step of all cells "
        f"(timed on noise), without reading the images; {size(costs.memory_bytes)} of memory; "
        f"{size(costs.disk_bytes)} of weights in the records, and {size(costs.checkpoint_bytes)} for a checkpoint "
        "during training."
    )


def total(sweep_folder: Path) -> str | None:
    """Return one sentence with the total of a multirun's planned jobs; None for a single job."""
    plans = [json.loads(path.read_text(encoding="utf-8")) for path in sweep_folder.glob(f"*/{PLAN}")]
    if len(plans) < 2:
        return None
    sums = {key: sum(plan[key] for plan in plans) for key in ("cells", "recorded", "seconds", "disk_bytes")}
    return (
        f"{len(plans)} jobs, {sums['cells']} cells, {sums['recorded']} of them already recorded: "
        f"{duration(sums['seconds'])} one after another, {size(sums['disk_bytes'])} of weights, "
        f"{size(max(plan['memory_bytes'] for plan in plans))} of memory for the largest job"
    )


def duration(seconds: float) -> str:
    """Format a time in seconds, such as `0:05:20`."""
    return str(timedelta(seconds=round(seconds)))


def size(number: float) -> str:
    """Format a number of bytes, such as `1.2 GB`."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
