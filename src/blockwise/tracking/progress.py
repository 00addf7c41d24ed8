"""The progress display: a progress bar and the best accuracy of each cell so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from blockwise.training.cells import Progress as CellProgress
from blockwise.training.cells import cell_names
from blockwise.training.module import BlockwiseModule


def new_bar(console: Console) -> Progress:
    """Return an empty progress bar in the project's style."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


@contextmanager
def decoding(console: Console) -> Iterator[Callable[[int], Callable[[], None]]]:
    """Show a bar while images are read; yield the argument of `BlockwiseDataModule.decode`."""
    with new_bar(console) as bar:

        def begin(total: int) -> Callable[[], None]:
            task = bar.add_task("reading images", total=total)
            return lambda: bar.advance(task)

        yield begin


class ProgressDisplay(L.Callback):
    """Shows epochs, batches and each cell's validation accuracy; one plain line per epoch without a terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.bar = new_bar(console)
        self.live: Live | None = None
        self.task: Any = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the live display, which restores the terminal."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the live display on a terminal."""
        if self.console.is_terminal:
            self.live = Live(Group(self.bar), console=self.console, refresh_per_second=4)
            self.live.start()
        self._show(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the progress bar; if training resumes, it starts at the checkpoint."""
        per_epoch = int(trainer.num_training_batches) + sum(int(n) for n in trainer.num_val_batches)
        done = (trainer.fit_loop.epoch_loop.batch_idx + 1) % int(trainer.num_training_batches)
        self.task = self.bar.add_task(
            self._title(trainer, pl_module),
            total=per_epoch * (trainer.max_epochs or 0),
            completed=per_epoch * trainer.current_epoch + done,
        )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch in the bar's title."""
        self.bar.update(self.task, description=self._title(trainer, pl_module))

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a training batch."""
        self.bar.advance(self.task)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Count a validation batch."""
        self.bar.advance(self.task)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's accuracies."""
        self._show(pl_module)
        if not self.console.is_terminal:
            assert isinstance(pl_module, BlockwiseModule)
            cells = "  ".join(str(text) for text in _cells(pl_module))
            self.console.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {cells}", soft_wrap=True)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar of the test batches."""
        if self.task is not None:  # None if there was nothing left to train
            self.bar.update(self.task, visible=False)
        self.task = self.bar.add_task(f"{self.title}  testing", total=sum(int(n) for n in trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any) -> None:
        """Count a test batch."""
        self.bar.advance(self.task)

    def _title(self, trainer: L.Trainer, module: L.LightningModule) -> str:
        assert isinstance(module, BlockwiseModule)
        active = sum(progress.active for progress in module.progress)
        return f"{self.title}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {active} cells"

    def _show(self, module: L.LightningModule) -> None:
        assert isinstance(module, BlockwiseModule)
        if self.live is not None:
            self.live.update(Group(self.bar, Columns(_cells(module), padding=(0, 2))))


def _cells(module: BlockwiseModule) -> list[Text]:
    """Return `scope accuracy` of every cell, the best so far in bold."""
    best = max((progress.best["val"]["top1"] for progress in module.progress if progress.best), default=None)
    texts = []
    for name, progress in zip(cell_names(module.cells), module.progress, strict=True):
        top1 = progress.best["val"]["top1"] if progress.best else None
        texts.append(
            Text(f"{name} {_state(progress)}", style="bold green" if top1 is not None and top1 == best else "")
        )
    return texts


def _state(progress: CellProgress) -> str:
    if progress.status == "diverged":
        return "diverged"
    accuracy = "..." if progress.best is None else f"{100 * progress.best['val']['top1']:.1f}"
    return f"({accuracy})" if progress.status == "pruned" else accuracy
