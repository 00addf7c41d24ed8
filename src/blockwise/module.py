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
from blockwise.data.batches import mixed
from blockwise.data.datamodule import Batch
from blockwise.distributed import gathered, rank, share, sum_gradients
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
        seconds_before: Time that was spent before the checkpoint from which training goes on.
    """

    # frozen stages are not in a checkpoint: they come from the backbone
    strict_loading = False

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
        self.seconds_before = 0.0
        self._since = perf_counter()

    @property
    def seconds(self) -> float:
        """Time that the cells have taken together so far."""
        return self.seconds_before + perf_counter() - self._since

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
        part = share(len(labels), labels.device)
        for index, live in self._cells_at_boundaries(images):
            if part:
                # the same random numbers for every cell, alone or beside others
                torch.manual_seed(mixed(self._seed, self.current_epoch, batch_idx, rank()))
                logits = self.networks[index](self.backbone, live)
                self.manual_backward(part * cross_entropy(logits, labels))
                self._logits["train"][index].append(logits.detach())
            sum_gradients(self.networks[index].trainable())
            optimizers[index].step()
            optimizers[index].zero_grad()

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
        if len(labels):
            for index, live in self._cells_at_boundaries(images, kept_as):
                self._logits[split][index].append(self.networks[index](self.backbone, live))

    def on_validation_epoch_end(self) -> None:
        """Close the epoch of every active cell: metrics, best epoch, early stopping."""
        if self.trainer.sanity_checking:
            self._metrics("val")
            return
        train, val = self._metrics("train"), self._metrics("val")
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

    def on_train_start(self) -> None:
        """Train no further where a checkpoint holds none but cells that have stopped."""
        if not any(progress.active for progress in self.progress):
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the cells train and how far they have come, the epoch's outputs so far included."""
        labels = gathered(_joined(self._labels.get("train", [])))
        checkpoint["state_dict"] = {}
        checkpoint["labels"] = labels
        checkpoint["seconds"] = self.seconds
        checkpoint["cells"] = {
            cell.key: {
                "trained": network.trained_state(),
                "progress": vars(progress),
                "logits": gathered(_joined(logits)),
            }
            for cell, network, progress, logits in zip(
                self.cells, self.networks, self.progress, self._outputs("train"), strict=True
            )
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what was kept; the checkpoint may hold other cells as well."""
        cells, optimizers = checkpoint["cells"], checkpoint["optimizer_states"]
        places = [list(cells).index(cell.key) for cell in self.cells]
        checkpoint["optimizer_states"] = [optimizers[place] for place in places]
        self.seconds_before = checkpoint["seconds"]
        begun = len(checkpoint["labels"]) and rank() == 0  # what was gathered belongs to one process
        self._labels["train"] = [checkpoint["labels"]] if begun else []
        self._logits["train"] = [[cells[cell.key]["logits"]] if begun else [] for cell in self.cells]
        for index, cell in enumerate(self.cells):
            kept = cells[cell.key]
            self.networks[index].load_trained_state(kept["trained"])
            self.progress[index] = Progress(**kept["progress"])

    def on_test_start(self) -> None:
        """Put every cell back to its best epoch."""
        for network, progress in zip(self.networks, self.progress, strict=True):
            if progress.status in ("running", "stopped"):
                network.load_trained_state(progress.best_state)
                progress.status = "running"

    def on_test_epoch_end(self) -> None:
        """Keep each cell's test metrics."""
        logits, labels = self._seen("test")
        for index, values in logits.items():
            progress = self.progress[index]
            progress.test = compute_metrics(values, labels)
            progress.predictions = torch.stack([labels, values.argmax(1)], dim=1).tolist()
            progress.status = "finished"

    def _cells_at_boundaries(self, images: Tensor, kept_as: int | None = None) -> Iterator[tuple[int, Any]]:
        """Yield each active cell with what is live at its boundary, input side first; keeps the time of each.

        `kept_as` is the number of a batch whose images are the same each time.
        """
        at: dict[int, list[int]] = {}
        for index, (network, progress) in enumerate(zip(self.networks, self.progress, strict=True)):
            if progress.active:
                at.setdefault(network.start, []).append(index)
        if not len(images):  # several processes, and a batch too small for all of them
            yield from ((index, None) for boundary in sorted(at) for index in at[boundary])
            return
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

    def _outputs(self, split: str) -> list[list[Tensor]]:
        return self._logits.get(split, [[] for _ in self.cells])

    def _metrics(self, split: str) -> dict[int, Metrics]:
        """Return the metrics of every active cell on what it has seen of the split since the last call."""
        logits, labels = self._seen(split)
        return {index: compute_metrics(values, labels) for index, values in logits.items()}

    def _seen(self, split: str) -> tuple[dict[int, Tensor], Tensor]:
        """Return the logits of every active cell since the last call, and the labels."""
        outputs, labels = self._outputs(split), gathered(_joined(self._labels.get(split, [])))
        self._logits.pop(split, None)
        self._labels.pop(split, None)
        active = [index for index, progress in enumerate(self.progress) if progress.active]
        return {index: gathered(_joined(outputs[index])).float() for index in active}, labels


def _joined(batches: list[Tensor]) -> Tensor:
    # those from a checkpoint lie in the memory of the CPU
    return torch.cat([batch.to(batches[-1].device) for batch in batches]) if batches else torch.empty(0)
