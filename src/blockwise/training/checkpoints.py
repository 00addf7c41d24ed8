"""Checkpoints of cells in training, from which killed or interrupted runs resume."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from blockwise.errors import Interrupted
from blockwise.io.files import replacing
from blockwise.results.store import settings_hash
from blockwise.training.cells import Cell

# submitit makes Slurm send USR2 to all processes of a job before its time limit
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Checkpoints:
    """The checkpoints of one sweep and seed; each holds the cells that were trained side by side.

    Args:
        folder: The folder of the checkpoints.
        search: Name and settings of the search that stops cells; None if all train to their end. Which cells a search
            has stopped depends on the search and on the other cells, so it resumes from checkpoints of its own.
    """

    def __init__(self, folder: Path, search: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.search = search
        self.own = folder / settings_hash(search) if search else folder

    def path(self, cells: Iterable[Cell]) -> Path:
        """Return the path of the checkpoint of these cells."""
        return self.own / f"{settings_hash({'cells': sorted(cell.saved_key for cell in cells)})}.ckpt"

    def find(self, cells: Iterable[Cell]) -> Path | None:
        """Return the checkpoint with the most batches of those that hold these cells; None if there is none.

        It may hold other cells as well, unless cells compete in a search.
        """
        wanted = {cell.saved_key for cell in cells}
        found = _read(self.own.glob("*.ckpt"))
        candidates = [(step, path) for path, keys, step in found if (wanted == keys if self.search else wanted <= keys)]
        return max(candidates)[1] if candidates else None

    def drop(self, finished: AbstractSet[str], pruned: AbstractSet[str] = frozenset()) -> None:
        """Delete the checkpoints that no run will need: all of their cells are recorded.

        Args:
            finished: Keys of the cells that have finished or diverged.
            pruned: Keys of the cells that this search has stopped; other searches may train them further.
        """
        for path, keys, _ in _read(self.folder.rglob("*.ckpt")):
            if keys <= (finished | pruned if path.parent == self.own else finished):
                path.unlink(missing_ok=True)


def _read(paths: Iterable[Path]) -> list[tuple[Path, set[str], int]]:
    """Return path, cell keys and number of batches of each checkpoint that can be read."""
    checkpoints = []
    for path in sorted(paths):
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            checkpoints.append((path, set(content["cells"]), int(content["global_step"])))
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):
            continue  # damaged: training starts from the beginning
    return checkpoints


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and directly to disk instead of via a copy in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Write a checkpoint to a temporary file, which then replaces the previous checkpoint."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch raises this if writing fails
                raise OSError(errno.EIO, "perhaps the disk is full", str(path)) from error


class CheckpointCallback(L.Callback):
    """Saves a checkpoint at intervals, and when Ctrl-C, SIGTERM or SIGUSR2 interrupts training.

    It saves only between steps, since during a step some cells have trained on the batch and others have not. A second
    Ctrl-C stops at once.

    Args:
        path: The path of the checkpoint.
        every: Seconds between checkpoints; None saves only when interrupted.
        between_batches: Save between batches too. False saves between epochs only, for data whose order cannot be
            resumed in the middle of an epoch; an interruption then loses the epoch.
    """

    def __init__(self, path: Path, every: float | None, *, between_batches: bool = True) -> None:
        self.path = path
        self.every = every
        self.between_batches = between_batches
        self._last = monotonic()
        self._asked: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers."""
        self._last = monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in STOPPING}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Save between two batches; after the last batch of an epoch, validation comes first."""
        if trainer.fit_loop.epoch_loop.batch_idx + 1 < trainer.num_training_batches:
            self._save_and_stop(trainer, save=self.between_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save between two epochs."""
        self._save_and_stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._restore_handlers()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self._asked = number

    def _save_and_stop(self, trainer: L.Trainer, *, save: bool = True) -> None:
        due = self.every is not None and monotonic() - self._last >= self.every
        # all processes of a run must make the same decision
        any_process = trainer.strategy.reduce_boolean_decision
        stop = any_process(self._asked is not None, all=False)
        if save and (stop or any_process(due, all=False)):
            trainer.save_checkpoint(self.path)
            self._last = monotonic()
        if stop:
            raise Interrupted(self._asked or signal.SIGTERM)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
