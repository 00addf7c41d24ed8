"""State of a run during training: the outputs of every cell in an epoch, and the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from blockwise.training.distributed import gather, is_distributed, rank

# more images than a batch has
LARGEST_BATCH = 1 << 32


class EpochOutputs:
    """Collects the logits of every cell, and the labels, batch by batch; gathers them from all processes.

    The images are in the order of the data, however many processes share them.

    Args:
        num_cells: Number of cells.
        num_classes: Number of classes, the length of the logits.
    """

    def __init__(self, num_cells: int, num_classes: int) -> None:
        self._num_cells, self._num_classes = num_cells, num_classes
        self._clear()

    def _clear(self) -> None:
        self._logits = [_Rows() for _ in range(self._num_cells)]
        self._labels = _Rows()
        self._places = _Rows()
        self._batches = 0

    def add_labels(self, labels: Tensor) -> None:
        """Add the labels of a batch, shape (batch,); every process calls this for every batch."""
        first = self._batches * LARGEST_BATCH
        self._labels.add(labels)
        self._places.add(torch.arange(first, first + len(labels), device=labels.device))
        self._batches += 1

    def add_logits(self, cell: int, logits: Tensor) -> None:
        """Add the logits of a cell for a batch, shape (batch, classes)."""
        # processes without rows do not know their type
        self._logits[cell].add(logits.float() if is_distributed() else logits)

    def pop(self, cells: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Return the logits of some cells, shape (images, classes), and the labels, shape (images,); then clear."""
        gathered, labels = self._gather(cells)
        self._clear()
        return {cell: logits.float() for cell, logits in gathered.items()}, labels

    def state(self) -> tuple[list[Tensor], Tensor]:
        """Return the logits of every cell and the labels, for a checkpoint."""
        logits, labels = self._gather(range(self._num_cells))
        return [logits[cell].clone() for cell in range(self._num_cells)], labels.clone()

    def load_state(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Restore what `state` returned, on rank 0 only, since it was gathered from all processes."""
        self._clear()
        self._batches = 1
        if len(labels) and rank() == 0:
            self._labels.add(labels)
            self._places.add(torch.arange(len(labels), device=labels.device))
            for rows, values in zip(self._logits, logits, strict=True):
                if len(values):
                    rows.add(values)

    def _gather(self, cells: Iterable[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Return logits and labels of all processes, in the order of the data; cells that have stopped have none."""
        own = self._labels.all()
        logits = {cell: gather(self._rows(cell, own.device)) for cell in cells}
        labels = gather(own)
        if not is_distributed():
            return logits, labels
        # each process has every n-th image of a batch, so images at the same place are in the order of processes
        order = gather(self._places.all()).argsort(stable=True)
        return {cell: values[order] if len(values) else values for cell, values in logits.items()}, labels[order]

    def _rows(self, cell: int, device: torch.device) -> Tensor:
        """Return the logits of a cell where all processes have theirs, in one shape also if there are none."""
        rows = self._logits[cell].all().to(device)
        return rows if len(rows) else torch.empty(0, self._num_classes, device=device)


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
    """Measures the time of a run.

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
