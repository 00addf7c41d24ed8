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
        self._logits = [_Rows() for _ in range(self._num_cells)]
        self._labels = _Rows()

    def add_labels(self, labels: Tensor) -> None:
        """Add the labels of a batch, shape (batch,)."""
        self._labels.add(labels)

    def add_logits(self, cell: int, logits: Tensor) -> None:
        """Add the logits of a cell for a batch, shape (batch, classes)."""
        self._logits[cell].add(logits)

    def pop(self, cells: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Return the logits of some cells, shape (images, classes), and the labels, shape (images,); then clear."""
        logits = {cell: gather(self._logits[cell].all()).float() for cell in cells}
        labels = gather(self._labels.all())
        self._clear()
        return logits, labels

    def state(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every cell and the labels, for a checkpoint."""
        return [gather(rows.all()).clone() for rows in self._logits], gather(self._labels.all()).clone()

    def load_state(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Restore what `state` returned, on rank 0 only, since it was gathered from all processes."""
        self._clear()
        if len(labels) and rank() == 0:
            self._labels.add(labels)
            for rows, values in zip(self._logits, logits, strict=True):
                if len(values):
                    rows.add(values)


class _Rows:
    """Batches of rows in one tensor that grows.

    A list would keep a small tensor per batch. Between the large tensors of a step, these cut freed memory into pieces
    that later steps cannot use, and the memory of a run grows with its number of images.
    """

    def __init__(self) -> None:
        self._tensor = torch.empty(0)
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Append the rows of a batch."""
        count = self._count + len(values)
        if count > len(self._tensor) or not self._count:
            # rows from a checkpoint are on the CPU
            larger = values.new_empty((max(count, 2 * self._count), *values.shape[1:]))
            if self._count:
                larger[: self._count] = self._tensor[: self._count]
            self._tensor = larger
        self._tensor[self._count : count] = values
        self._count = count

    def all(self) -> Tensor:
        """Return all rows."""
        return self._tensor[: self._count]


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
