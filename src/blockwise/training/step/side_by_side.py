"""All cells on one batch: the frozen stages run once, and each cell continues from its boundary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from blockwise.backbone.stages import Activations, StagedBackbone, rows_of
from blockwise.training.cells import CellNetwork
from blockwise.training.step.cell import CellStep
from blockwise.training.step.graphed import GraphedBatches, Key, Work


@dataclass(frozen=True)
class Part:
    """Some images of a batch.

    Attributes:
        rows: Their indices, shape (images,).
        per_image: Names of the activations that have one row per image.
    """

    rows: Tensor
    per_image: Collection[str]

    def of(self, activations: Activations, labels: Tensor) -> tuple[Activations, Tensor]:
        """Return the activations and the labels of these images."""
        return rows_of(activations, self.rows, self.per_image), labels[self.rows]


@dataclass(frozen=True)
class Training(Work):
    """A cell trains on a batch.

    Attributes:
        step: Trains the cell.
        random_seed: Seed of dropout, the same for all cells: each draws the same numbers alone and beside others.
        fraction: The fraction of these images that this process has.
        part: The images on which it trains; None for all.
    """

    step: CellStep
    random_seed: int
    fraction: float = 1.0
    part: Part | None = None

    @property
    def boundary(self) -> int:
        """The boundary whose activations the cell reads."""
        return self.step.network.start

    def run(self, activations: Activations, labels: Tensor) -> Tensor:
        """Train and return the logits."""
        if self.part is not None:
            activations, labels = self.part.of(activations, labels)
        return self.step.train(activations, labels, self.fraction)

    def key(self) -> Any:
        """Return what must be the same when the step is recorded and when it is replayed."""
        return self.step.network.phase, self.step.numbers()

    def changed(self) -> list[list[Tensor]]:
        """Return groups of all tensors that the step changes."""
        return self.step.changed()

    def seed(self) -> None:
        """Seed the random numbers that the step draws."""
        self.step.seed(self.random_seed)

    def on_device(self) -> AbstractContextManager[None]:
        """Keep on the device what the optimizer reads, while the step is recorded."""
        return self.step.on_device()

    def prepare(self) -> None:
        """Copy the learning rates to the device."""
        self.step.copy_rates()

    def abandon(self) -> None:
        """Clear what a step that failed has left."""
        self.step.abandon()


@dataclass(frozen=True)
class Idle:
    """This process has no image of the batch on which a cell trains; it only takes part in the sum of gradients.

    Attributes:
        step: Trains the cell.
    """

    step: CellStep

    @property
    def boundary(self) -> int:
        """The boundary at which other processes train the cell: all sum gradients in the same order."""
        return self.step.network.start


@dataclass(frozen=True)
class Evaluation(Work):
    """A cell is evaluated on a batch.

    Attributes:
        backbone: The frozen network.
        network: The cell's own stages and head.
        part: The images on which it is evaluated; None for all.
    """

    backbone: StagedBackbone
    network: CellNetwork
    part: Part | None = None

    @property
    def boundary(self) -> int:
        """The boundary whose activations the cell reads."""
        return self.network.start

    def run(self, activations: Activations, labels: Tensor) -> Tensor:
        """Return the logits."""
        if self.part is not None:
            activations, labels = self.part.of(activations, labels)
        return self.network(self.backbone, activations)

    def key(self) -> Any:
        """Return what must be the same when the evaluation is recorded and when it is replayed."""
        return self.network.phase


def run(
    backbone: StagedBackbone,
    kind: str,
    first: int,
    activations: Activations,
    labels: Tensor,
    works: Mapping[Key, Work | Idle],
    *,
    charge: Callable[[Key, float], None],
    graphed: GraphedBatches | None = None,
) -> Iterator[tuple[Key, Tensor]]:
    """Run all cells on a batch, and yield the key and the logits of each.

    Without graphs, the frozen stages stop at each boundary until its cells are done. So only one cell's activations are
    in memory at a time.

    Args:
        backbone: The frozen network.
        kind: What the batch is for.
        first: The boundary from which it continues.
        activations: The activations there.
        labels: The labels.
        works: What to do, by cell and, if there are folds, by fold.
        charge: Called with the key of a cell and the seconds that were spent on it alone.
        graphed: Runs batches as CUDA graphs.
    """
    busy = {key: work for key, work in works.items() if not isinstance(work, Idle)}
    results = None if graphed is None else graphed.run(kind, first, activations, labels, busy)
    if results is not None:
        for index, (logits, seconds) in results.items():
            charge(index, seconds)
            yield index, logits
        return
    at: dict[int, list[Key]] = {}
    for index, work in works.items():
        at.setdefault(work.boundary, []).append(index)
    read = {work.boundary for work in busy.values()}
    onward = backbone.onward(first, activations, read)
    for boundary in sorted(at):
        reached = next(onward)[1] if boundary in read else {}
        for index in at[boundary]:
            work = works[index]
            if isinstance(work, Idle):
                work.step.sit_out()
                continue
            start = perf_counter()
            work.seed()
            logits = work.run(reached, labels)
            charge(index, perf_counter() - start)
            yield index, logits
