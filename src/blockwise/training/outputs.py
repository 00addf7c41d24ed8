"""What a module keeps per cell while it trains: the outputs of an epoch, and the time each cell takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor

from blockwise.training.cells import Progress
from blockwise.training.distributed import gather, rank


class EpochOutputs:
    """Collects the logits of every cell, and the labels, batch by batch; gathers them from all processes.

    Args:
        num_cells: Number of cells.
    """

    def __init__(self, num_cells: int) -> None:
        self._num_cells = num_cells
        self._clear()

    def _clear(self) -> None:
        self._logits: list[list[Tensor]] = [[] for _ in range(self._num_cells)]
        self._labels: list[Tensor] = []

    def add_labels(self, labels: Tensor) -> None:
        """Add the labels of a batch, shape (batch,)."""
        self._labels.append(labels)

    def add_logits(self, cell: int, logits: Tensor) -> None:
        """Add the logits of a cell for a batch, shape (batch, classes)."""
        self._logits[cell].append(logits)

    def pop(self, cells: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Return the logits of some cells, shape (images, classes), and the labels, shape (images,); then clear."""
        logits = {cell: gather(_concatenate(self._logits[cell])).float() for cell in cells}
        labels = gather(_concatenate(self._labels))
        self._clear()
        return logits, labels

    def state(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every cell and the labels, for a checkpoint."""
        return [gather(_concatenate(logits)) for logits in self._logits], gather(_concatenate(self._labels))

    def load_state(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Restore what `state` returned; it was gathered from all processes, so the first one alone holds it."""
        restore = bool(len(labels)) and rank() == 0
        self._logits = [[values] if restore else [] for values in logits]
        self._labels = [labels] if restore else []


class Clock:
    """Measures how long a run takes, and how much of it each cell takes alone.

    Attributes:
        seconds_before: Time that was spent before the checkpoint from which training resumed.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._start = perf_counter()

    @property
    def seconds(self) -> float:
        """Time of the whole run, the part before the checkpoint included."""
        return self.seconds_before + perf_counter() - self._start

    @contextmanager
    def charge(self, progress: Progress) -> Iterator[None]:
        """Add the time that the block takes to a cell's own."""
        start = perf_counter()
        yield
        progress.seconds += perf_counter() - start


def _concatenate(batches: list[Tensor]) -> Tensor:
    # outputs from a checkpoint are in the CPU's memory
    return torch.cat([batch.to(batches[-1].device) for batch in batches]) if batches else torch.empty(0)
