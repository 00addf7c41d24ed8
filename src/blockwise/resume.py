"""Checkpoints of cells in training: what a killed or interrupted run goes on from."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from blockwise.cells import Cell
from blockwise.errors import Interrupted
from blockwise.files import replacing
from blockwise.results import settings_hash

# the last is what Slurm sends to all processes of a job, told to by submitit, before its time is up
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Checkpoints:
    """The checkpoints of one sweep and seed, each of the cells that were trained side by side.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cells: Iterable[Cell]) -> Path:
        """Return where the checkpoint of these cells goes."""
        return self.folder / f"{settings_hash({'cells': sorted(cell.key for cell in cells)})}.ckpt"

    def find(self, cells: Iterable[Cell]) -> Path | None:
        """Return the checkpoint that has come farthest of those that hold all of these cells."""
        wanted = {cell.key for cell in cells}
        found = [(step, path) for path, keys, step in self._all() if wanted <= keys]
        return max(found)[1] if found else None

    def drop(self, recorded: set[str]) -> None:
        """Remove the checkpoints that hold none but recorded cells, given by their keys."""
        for path, keys, _ in self._all():
            if keys <= recorded:
                path.unlink(missing_ok=True)

    def _all(self) -> list[tuple[Path, set[str], int]]:
        """Return every checkpoint that can be read: its cells, and the steps it has behind it."""
        found = []
        for path in sorted(self.folder.glob("*.ckpt")):
            try:
                content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
                found.append((path, set(content["cells"]), int(content["global_step"])))
            except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):
                continue  # not whole: training begins again
        return found


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint straight to the disk, not to memory first; it is there when it is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Write a checkpoint, and only then let it take the place of the last one."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what torch makes of an error in writing
                raise OSError(errno.EIO, "perhaps the disk is full", str(path)) from error


class CheckpointCallback(L.Callback):
    """Saves a checkpoint every so often, and before it gives way to Ctrl-C, SIGTERM or SIGUSR2.

    It waits for the end of a step, since in the middle of one some cells have been trained on a batch and some have
    not. A second Ctrl-C does not wait.

    Args:
        path: Where the checkpoint goes.
        every: Seconds between two; None saves only when interrupted.
    """

    def __init__(self, path: Path, every: float | None) -> None:
        self.path = path
        self.every = every
        self._last = monotonic()
        self._asked: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals."""
        self._last = monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in STOPPING}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Save between two batches; after the last of an epoch, its validation comes first."""
        if trainer.fit_loop.epoch_loop.batch_idx + 1 < trainer.num_training_batches:
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save between two epochs."""
        self._save_and_stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no more."""
        self._listen_no_more()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self._listen_no_more()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self._asked = number

    def _save_and_stop(self, trainer: L.Trainer) -> None:
        due = self.every is not None and monotonic() - self._last >= self.every
        # all processes of a run must come to the same decision
        agree = trainer.strategy.reduce_boolean_decision
        stop = agree(self._asked is not None, all=False)
        if stop or agree(due, all=False):
            trainer.save_checkpoint(self.path)
            self._last = monotonic()
        if stop:
            raise Interrupted(self._asked or signal.SIGTERM)

    def _listen_no_more(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
