"""Per-cell state during training: the outputs of an epoch, and the time spent on each cell."""

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
        logits = {}
        for cell in cells:
            logits[cell] = gather(_concatenate(self._logits[cell])).float()
            self._logits[cell] = []  # with many images, two copies of all cells' logits would be large
        labels = gather(_concatenate(self._labels))
        self._clear()
        return logits, labels

    def state(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every cell and the labels, for a checkpoint."""
        return [gather(_concatenate(logits)) for logits in self._logits], gather(_concatenate(self._labels))

    def load_state(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Restore what `state` returned, on rank 0 only, since it was gathered from all processes."""
        restore = bool(len(labels)) and rank() == 0
        self._logits = [[values] if restore else [] for values in logits]
        self._labels = [labels] if restore else []


class Clock:
    """Measures the time of a run and the time spent on each cell alone.

    Attributes:
        seconds_before: Time spent before the checkpoint from which training resumed, in seconds.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._start = perf_counter()

    @property
    def seconds(self) -> float:
        """Time of the whole run in seconds, including the part before the checkpoint."""
        return self.seconds_before + perf_counter() - self._start

    @contextmanager
    def charge(self, progress: Progress) -> Iterator[None]:
        """Add the time spent inside a `with` block to a cell's own time."""
        start = perf_counter()
        yield
        progress.seconds += perf_counter() - start


def _concatenate(batches: list[Tensor]) -> Tensor:
    # outputs from a checkpoint are on the CPU
    return torch.cat([batch.to(batches[-1].device) for batch in batches]) if batches else torch.empty(0)
