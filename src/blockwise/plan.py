"""What a run would train and what that would cost: `plan=true`."""

from __future__ import annotations

import json
import os
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
from torch import Tensor
from torch.utils.data import DataLoader

from blockwise.analysis.table import print_table
from blockwise.cells import Cell
from blockwise.data.batches import OrderedBatches, ShuffledBatches
from blockwise.jobs import FOLDER
from blockwise.module import BlockwiseModule
from blockwise.partition import Partition
from blockwise.provenance import peak_memory_bytes

NAME = "plan.json"
# the first step allocates memory and chooses algorithms
STEPS = 3


@dataclass(frozen=True)
class CellPlan:
    """A cell to come.

    Attributes:
        name: Its scope, and its rate where there are several.
        recorded: Whether it has been trained already.
        trainable: Parameters that it trains, the head's included; None as long as its blocks are not known.
        flops: Floating point operations of its own, for one training image, forward and backward.
    """

    name: str
    recorded: bool
    trainable: int | None
    flops: int | None


@dataclass(frozen=True)
class Costs:
    """What the cells that are not recorded yet would take.

    Attributes:
        step_seconds: One training step of all of them.
        seconds: Training and evaluation, if no cell stops early.
        memory_bytes: Peak of this process, or of its GPU.
        disk_bytes: Weights in the records.
        checkpoint_bytes: The checkpoint while they train.
    """

    step_seconds: float = 0.0
    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    checkpoint_bytes: int = 0


def cell_flops(partition: Partition, blocks: Sequence[int]) -> int:
    """Count the operations of a cell's own, for one image: from its first block on forward and back, its weights."""
    if not blocks:
        return 0
    trained = {index for block in blocks for index in _layers(partition, block)}
    onward = sum(layer.flops for layer in partition.layers[min(trained) :])
    weights = sum(partition.layers[index].flops for index in trained)
    # nothing before the first layer that trains waits for a gradient
    first = next((layer.flops for layer in partition.layers[min(trained) :] if layer.num_parameters), 0)
    return 2 * onward + weights - first


def _layers(partition: Partition, block: int) -> range:
    return range(partition.blocks[block].first, partition.blocks[block].last + 1)


def measure(module: BlockwiseModule, trainer: L.Trainer, size: int, batch_size: int, counts: dict[str, int]) -> Costs:
    """Train a few steps on noise, and reckon from them what a whole run takes.

    Args:
        module: The cells; they are of no use afterwards.
        trainer: Ready for one epoch, with a `Stopwatch` among its callbacks.
        size: Side of the images, pixels.
        batch_size: Images a batch.
        counts: Images of `train`, `val` and `test`, and `epochs`.
    """
    trainer.fit(module, _noise(STEPS, size, batch_size), _noise(1, size, batch_size))
    (watch,) = (callback for callback in trainer.callbacks if isinstance(callback, Stopwatch))  # type: ignore[attr-defined]
    steps = len(ShuffledBatches(counts["train"], batch_size, seed=0))
    passes = {split: len(OrderedBatches(counts[split], batch_size)) for split in ("val", "test")}
    epoch = steps * watch.step + passes["val"] * watch.evaluation
    weights = sum(_bytes(network.trained_state().values()) for network in module.networks)
    moments = sum(_bytes(state.values()) for o in trainer.optimizers for state in o.state.values())
    return Costs(
        step_seconds=watch.step,
        seconds=counts["epochs"] * epoch + passes["test"] * watch.evaluation,
        memory_bytes=peak_memory_bytes(),
        disk_bytes=weights,
        checkpoint_bytes=2 * weights + moments,  # as they are, and as they were at their best
    )


class Stopwatch(L.Callback):
    """Times steps; keeps the shortest, and the last evaluation of a batch."""

    def __init__(self) -> None:
        self.step = float("inf")
        self.evaluation = 0.0
        self._since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._since = perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop."""
        _wait()
        self.step = min(self.step, perf_counter() - self._since)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Start."""
        self._since = perf_counter()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop."""
        _wait()
        self.evaluation = perf_counter() - self._since


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _noise(batches: int, size: int, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.long)
    return DataLoader([(images, labels)] * batches, batch_size=None)  # type: ignore[arg-type]


def _bytes(values: Any) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def describe(cell: Cell, partition: Partition, *, recorded: bool, several_rates: bool, head: int) -> CellPlan:
    """Return what can be said of a cell without training it; `head` is the number of the head's parameters."""
    name = cell.key if several_rates else cell.scope.name
    if cell.scope.top is not None and not cell.scope.blocks:
        return CellPlan(name, recorded, None, None)
    layers = {index for block in cell.scope.blocks for index in _layers(partition, block)}
    trainable = head + sum(partition.layers[index].num_parameters for index in layers)
    return CellPlan(name, recorded, trainable, cell_flops(partition, cell.scope.blocks))


def show(console: Console, title: str, cells: Sequence[CellPlan], costs: Costs) -> None:
    """Print a plan; in a job of a multirun, keep it for the sum of all jobs as well."""
    recorded = sum(cell.recorded for cell in cells)
    console.print(f"{title}: {len(cells)} cells, {recorded} of them recorded already", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scope")
    for heading in ("trainable", "own GFLOPs an image", ""):
        table.add_column(heading, justify="right")
    for cell in cells:
        cost = ("?", "?") if cell.trainable is None else (f"{cell.trainable:,}", f"{(cell.flops or 0) / 1e9:.2f}")
        table.add_row(cell.name, *cost, "recorded" if cell.recorded else "", style="dim" if cell.recorded else "")
    print_table(console, table)
    console.print(_sentence(costs) if recorded < len(cells) else "Nothing is left to train.", highlight=False)
    if folder := os.environ.get(FOLDER):
        kept = {"cells": len(cells), "recorded": recorded, **asdict(costs)}
        (Path(folder) / NAME).write_text(json.dumps(kept))


def _sentence(costs: Costs) -> str:
    return (
        f"At most {duration(costs.seconds)} here, at {costs.step_seconds:.2f} s a step of all cells (timed on noise), "
        f"besides reading the images; {size(costs.memory_bytes)} of memory; {size(costs.disk_bytes)} of weights in the "
        f"end, and {size(costs.checkpoint_bytes)} for a checkpoint meanwhile."
    )


def total(sweep_folder: Path) -> str | None:
    """Return one sentence on all planned jobs of a multirun, or None where there are not several."""
    plans = [json.loads(path.read_text()) for path in sweep_folder.glob(f"*/{NAME}")]
    if len(plans) < 2:
        return None
    sums = {key: sum(plan[key] for plan in plans) for key in ("cells", "recorded", "seconds", "disk_bytes")}
    return (
        f"{len(plans)} jobs, {sums['cells']} cells, {sums['recorded']} of them recorded already: "
        f"{duration(sums['seconds'])} one after another, {size(sums['disk_bytes'])} of weights, "
        f"{size(max(plan['memory_bytes'] for plan in plans))} of memory for the largest job"
    )


def duration(seconds: float) -> str:
    """Return a time as `0:05:20`."""
    return str(timedelta(seconds=round(seconds)))


def size(number: float) -> str:
    """Return a size as `1.2 GB`."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
