"""The LightningModule: cells of one backbone, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from blockwise.cells import Cell, CellNetwork, Progress
from blockwise.data.datamodule import Batch
from blockwise.freezing import NormMode
from blockwise.fusion import can_fuse
from blockwise.kept import KeptActivations
from blockwise.metrics import compute_metrics
from blockwise.results import Metrics
from blockwise.stages import StagedBackbone

# Lightning's mixed precisions
HALF: dict[Any, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]


class BlockwiseModule(L.LightningModule):
    """Trains one cell or many.

    A step runs the frozen stages once. Each cell runs on from the boundary before its first trained stage, forward,
    backward and optimizer step, before the frozen stages go on to the next boundary: so only one cell's activations
    are alive at a time, and no cell sees another.

    Args:
        backbone: The frozen network, cut into stages.
        cells: What to train.
        num_classes: Length of the logits.
        optimizer: Makes an optimizer of parameter groups, each with its own `lr`.
        block_lr: Learning rate of the trained blocks; None means the head's.
        norm: Mode of the norms in trained blocks.
        patience: Stop a cell after so many epochs without a better validation accuracy; None never stops.
        seed: Decides the head's first weights and dropout.
        keep_bytes: Room for what comes out of the frozen stages before the first trained one, for validation images,
            from epoch to epoch. Only for validation images that come in the same batches each time; 0 keeps nothing.

    Attributes:
        networks: The cells' own networks, in the order of `cells`.
        progress: What has become of each cell.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        cells: Sequence[Cell],
        num_classes: int,
        optimizer: OptimizerFactory,
        *,
        block_lr: float | None = None,
        norm: NormMode = "train",
        patience: int | None = None,
        seed: int = 0,
        keep_bytes: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = backbone
        self.cells = list(cells)
        networks = [CellNetwork(backbone, cell.scope, num_classes, norm=norm, seed=seed) for cell in cells]
        self.networks: Sequence[CellNetwork] = nn.ModuleList(networks)  # type: ignore[assignment]
        self.progress = [Progress() for _ in cells]
        self._make_optimizer = optimizer
        self._block_lr = block_lr
        self._patience = patience
        self._seed = seed
        self._keep_bytes = keep_bytes
        self._kept = KeptActivations(0)
        self._logits: dict[str, list[list[Tensor]]] = {}
        self._labels: dict[str, list[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Make the frozen stages fast where and how the trainer computes."""
        del stage
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        self.backbone.freeze(HALF.get(self.trainer.precision, torch.float32), fuse=on_cpu and can_fuse())
        self.to(memory_format=torch.channels_last)
        self._kept = KeptActivations(self._keep_bytes)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one optimizer a cell, over what it trains and nothing else."""
        return [self._cell_optimizer(cell, network) for cell, network in zip(self.cells, self.networks, strict=True)]

    def _cell_optimizer(self, cell: Cell, network: CellNetwork) -> Optimizer:
        groups = [{"params": list(network.head.parameters()), "lr": cell.lr}]
        if blocks := network.trained_parameters():
            groups.append({"params": blocks, "lr": cell.lr if self._block_lr is None else self._block_lr})
        return self._make_optimizer(groups)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train every active cell on one batch."""
        images, labels = batch
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self._collect_labels("train", labels)
        for index, live in self._cells_at_boundaries(images):
            # the same random numbers for every cell, alone or beside others
            torch.manual_seed(self._seed + 1_000_003 * self.current_epoch + batch_idx)
            logits = self.networks[index](self.backbone, live)
            self.manual_backward(cross_entropy(logits, labels))
            optimizers[index].step()
            optimizers[index].zero_grad()
            self._logits["train"][index].append(logits.detach())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Run every active cell on one validation batch."""
        self._evaluate("val", batch, kept_as=batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Run every cell on one test batch."""
        del batch_idx
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Batch, kept_as: int | None = None) -> None:
        images, labels = batch
        self._collect_labels(split, labels)
        for index, live in self._cells_at_boundaries(images, kept_as):
            self._logits[split][index].append(self.networks[index](self.backbone, live))

    def on_validation_epoch_end(self) -> None:
        """Close the epoch of every active cell: metrics, best epoch, early stopping."""
        train, val = self._metrics("train"), self._metrics("val")
        if not train:  # Lightning's sanity check, before any training
            return
        for index, progress in enumerate(self.progress):
            if not progress.active:
                continue
            if progress.end_epoch(train[index], val[index], self._patience):
                state = self.networks[index].trained_state()
                progress.best_state = {name: t.detach().cpu().clone() for name, t in state.items()}
            values = {"train": train[index], "val": val[index]}
            row = {f"{self.cells[index].key}/{split}_{k}": v for split, m in values.items() for k, v in m.items()}
            for logger in self.loggers:
                logger.log_metrics(row, step=self.current_epoch)
        if not any(progress.active for progress in self.progress):
            self.trainer.should_stop = True

    def on_test_start(self) -> None:
        """Put every cell back to its best epoch."""
        for network, progress in zip(self.networks, self.progress, strict=True):
            if progress.status in ("running", "stopped"):
                network.load_trained_state(progress.best_state)
                progress.status = "running"

    def on_test_epoch_end(self) -> None:
        """Keep each cell's test metrics."""
        for index, metrics in self._metrics("test").items():
            self.progress[index].test = metrics
            self.progress[index].status = "finished"

    def drop_unfinished(self) -> None:
        """Give up the cells that still train; those that have stopped or diverged can be tested and recorded."""
        for progress in self.progress:
            if progress.active:
                progress.status = "unfinished"

    def _cells_at_boundaries(self, images: Tensor, kept_as: int | None = None) -> Iterator[tuple[int, Any]]:
        """Yield each active cell with what is live at its boundary, input side first; keeps the time of each.

        `kept_as` is the number of a batch whose images are the same each time.
        """
        at: dict[int, list[int]] = {}
        for index, (network, progress) in enumerate(zip(self.networks, self.progress, strict=True)):
            if progress.active:
                at.setdefault(network.start, []).append(index)
        first, begin = 0, self.backbone.enter(images)
        if kept_as is not None and at:
            first = min(at)
            begin = self._kept.at(first, kept_as, self.backbone, begin)
        for boundary, live in self.backbone.onward(first, begin, set(at)):
            for index in at[boundary]:
                since = perf_counter()
                yield index, live
                self.progress[index].seconds += perf_counter() - since

    def _collect_labels(self, split: str, labels: Tensor) -> None:
        self._logits.setdefault(split, [[] for _ in self.cells])
        self._labels.setdefault(split, []).append(labels)

    def _metrics(self, split: str) -> dict[int, Metrics]:
        """Return the metrics of every cell that has seen the split since the last call."""
        logits, labels = self._logits.pop(split, []), torch.cat(self._labels.pop(split, []) or [torch.empty(0)])
        return {i: compute_metrics(torch.cat(batches).float(), labels) for i, batches in enumerate(logits) if batches}
