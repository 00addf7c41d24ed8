"""The LightningModule: cells of one backbone, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockwise.backbone.load import HeadKind
from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.data.batches import derive_seed
from blockwise.data.datamodule import Batch
from blockwise.fast.fusion import can_fuse
from blockwise.policies import Phase, phases
from blockwise.recipe.metrics import predictions
from blockwise.recipe.parameter_groups import OptimizerFactory, parameter_groups
from blockwise.recipe.recipe import Recipe
from blockwise.results.record import Metrics
from blockwise.training.activation_cache import ActivationCache
from blockwise.training.cells import Cell, CellNetwork, Progress
from blockwise.training.distributed import batch_fraction, rank, sum_gradients
from blockwise.training.outputs import Clock, EpochOutputs

# Lightning's mixed precisions
HALF: dict[Any, torch.dtype] = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class BlockwiseModule(L.LightningModule):
    """Trains one or more cells side by side.

    A step runs the frozen stages once. At the boundary before its first trained stage, each cell does its own forward
    pass, backward pass and optimizer step. Then the frozen stages continue to the next boundary. So only one cell's
    activations are in memory at a time, and no cell depends on another.

    Args:
        backbone: The frozen network, cut into stages.
        cells: The cells to train.
        num_classes: Number of classes, the length of the logits.
        optimizer: Makes an optimizer from parameter groups, each with its own `lr`.
        recipe: How the cells train.
        head: Kind of the new head.
        seed: Seed of the head's initial weights and of dropout.
        keep_bytes: Size of the cache of the frozen stages' output on validation images, in bytes; 0 caches nothing. The
            validation batches must be the same in every epoch.

    Attributes:
        networks: The cells' own networks, in the order of `cells`.
        progress: The state of each cell.
        clock: Time spent on the run and on each cell.
    """

    # frozen stages are not in a checkpoint: they come from the backbone
    strict_loading = False

    def __init__(
        self,
        backbone: StagedBackbone,
        cells: Sequence[Cell],
        num_classes: int,
        optimizer: OptimizerFactory,
        recipe: Recipe | None = None,
        *,
        head: HeadKind = "linear",
        seed: int = 0,
        keep_bytes: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = backbone
        self.cells = list(cells)
        self.recipe = recipe or Recipe()
        norm = self.recipe.norm
        make = partial(CellNetwork, backbone, num_classes=num_classes, norm=norm, head=head, seed=seed)
        networks = [make(cell.scope) for cell in cells]
        self.networks: Sequence[CellNetwork] = nn.ModuleList(networks)  # type: ignore[assignment]
        self.progress = [Progress() for _ in cells]
        self.clock = Clock()
        self._make_optimizer = optimizer
        self._seed = seed
        self._keep_bytes = keep_bytes
        self._cache = ActivationCache(0)
        self._outputs = {split: EpochOutputs(len(self.cells)) for split in ("train", "val", "test")}
        self._phases: list[list[Phase]] = []
        self._epoch: int | None = None
        self._schedulers: list[LRScheduler] = []
        self._scheduler_states: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Prepare the frozen stages for the device and the precision of the trainer."""
        del stage
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        self.backbone.freeze(HALF.get(self.trainer.precision, torch.float32), fuse=on_cpu and can_fuse())
        self._channels_last()
        self._cache = ActivationCache(self._keep_bytes)
        policy, epochs = self.recipe.policy, self._max_epochs()
        self._phases = [phases(policy(cell.policy), cell.scope.blocks, epochs) for cell in self.cells]
        self._begin(0)

    def _channels_last(self) -> None:
        """Convert weights of convolutions; PyTorch's own `to` also tries 5-D tensors, and fails."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)

    def _max_epochs(self) -> int:
        return max(1, self.trainer.max_epochs or 1)

    def _begin(self, epoch: int) -> None:
        """Begin an epoch: set what trains in it."""
        self._epoch = epoch
        for index in self._active():
            self._begin_cell(index, epoch)

    def _begin_cell(self, index: int, epoch: int) -> None:
        until_now = self._phases[index][: epoch + 1]
        self.networks[index].begin(until_now[-1], {block for phase in until_now for block in phase.blocks})

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one optimizer per cell, over the parameters that the cell trains and no others."""
        recipe, optimizers = self.recipe, []
        for cell, network in zip(self.cells, self.networks, strict=True):
            groups = parameter_groups(
                network.head.parameters(),
                network.block_parameters(),
                lr=cell.lr,
                block_lr=recipe.block_lr,
                layer_decay=recipe.layer_decay,
                no_decay=recipe.no_decay,
            )
            optimizers.append(self._make_optimizer(groups))
        if recipe.scheduler is not None:
            epochs = self._max_epochs()
            steps = int(self.trainer.estimated_stepping_batches) // epochs
            self._schedulers = [recipe.scheduler(optimizer, epochs, steps) for optimizer in optimizers]
        return optimizers

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train every active cell on one batch."""
        if self.current_epoch != self._epoch:  # not in a hook: Lightning calls none if training resumes within an epoch
            self._begin(self.current_epoch)
        images, labels = batch
        self._outputs["train"].add_labels(labels if labels.ndim == 1 else labels.argmax(1))
        fraction = batch_fraction(len(labels), labels.device)
        optimizers = self._optimizers()
        for index, activations in self._cells_at_boundaries(images):
            if fraction:
                # each cell draws the same random numbers whether it trains alone or beside others
                torch.manual_seed(derive_seed(self._seed, self.current_epoch, batch_idx, rank()))
                logits = self.networks[index](self.backbone, activations)
                self.manual_backward(fraction * self.recipe.loss(logits, labels))
                self._outputs["train"].add_logits(index, logits.detach())
            self._step(index, optimizers[index], batch_idx)

    def _step(self, index: int, optimizer: Any, batch_idx: int) -> None:
        """Update a cell's weights and its learning rate."""
        parameters = self.networks[index].trainable()
        sum_gradients(parameters)
        if self.recipe.clip_norm is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            # with float16, gradients are scaled until the optimizer's step
            clip_grad_norm_(parameters, self.recipe.clip_norm * (1.0 if scaler is None else scaler.get_scale()))
        optimizer.step()
        optimizer.zero_grad()
        schedule = self.recipe.scheduler
        last_batch = batch_idx + 1 == self.trainer.num_training_batches
        if schedule is not None and (schedule.interval == "step" or last_batch):
            self._schedulers[index].step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate every active cell on one validation batch."""
        self._evaluate("val", batch, cached_batch=batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate every active cell on one test batch."""
        del batch_idx
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Batch, cached_batch: int | None = None) -> None:
        images, labels = batch
        self._outputs[split].add_labels(labels)
        if len(labels):
            for index, activations in self._cells_at_boundaries(images, cached_batch):
                self._outputs[split].add_logits(index, self.networks[index](self.backbone, activations))

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics of every active cell, update its best epoch and apply early stopping."""
        if self.trainer.sanity_checking:
            self._metrics("val")
            return
        train = self._metrics("train")
        logits, labels = self._outputs["val"].pop(self._active())
        val = {index: self.recipe.metrics(values, labels) for index, values in logits.items()}
        for index in self._active():
            progress, network = self.progress[index], self.networks[index]
            if progress.end_epoch(train[index], val[index], self.recipe.patience, self.recipe.select_by):
                progress.best_state = {name: t.detach().cpu().clone() for name, t in network.trained_state().items()}
                progress.predictions["val"] = predictions(logits[index], labels)
            values = {"train": train[index], "val": val[index]}
            row = {f"{self.cells[index].key}/{split}_{k}": v for split, m in values.items() for k, v in m.items()}
            for logger in self.loggers:
                logger.log_metrics(row, step=self.current_epoch)
        if not self._active():
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        """Set training mode, restore the schedules; stop at once if all cells in the checkpoint have stopped early."""
        for network in self.networks:
            network.train()  # Lightning calls this no more
        for scheduler, state in zip(self._schedulers, self._scheduler_states, strict=False):
            scheduler.load_state_dict(state)
        if not self._active():
            self.trainer.should_stop = True

    def on_test_start(self) -> None:
        """Restore the weights of every cell's best epoch."""
        for index, (network, progress) in enumerate(zip(self.networks, self.progress, strict=True)):
            if progress.status in ("running", "stopped"):
                network.load_trained_state(progress.best_state)
                progress.status = "running"
                self._begin_cell(index, progress.best_epoch or 0)

    def on_test_epoch_end(self) -> None:
        """Store the test metrics and predictions of each cell."""
        logits, labels = self._outputs["test"].pop(self._active())
        for index, values in logits.items():
            progress = self.progress[index]
            progress.test = self.recipe.metrics(values, labels)
            progress.predictions["test"] = predictions(values, labels)
            progress.status = "finished"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the cells' trained tensors, their progress, and the outputs of the epoch so far."""
        logits, labels = self._outputs["train"].state()
        checkpoint["state_dict"] = {}
        checkpoint["labels"] = labels
        checkpoint["seconds"] = self.clock.seconds
        checkpoint["cells"] = {
            cell.saved_key: {"trained": network.trained_state(), "progress": vars(progress), "logits": values}
            for cell, network, progress, values in zip(self.cells, self.networks, self.progress, logits, strict=True)
        }
        for cell, scheduler in zip(self.cells, self._schedulers, strict=False):
            checkpoint["cells"][cell.saved_key]["scheduler"] = scheduler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the cells; the checkpoint may contain other cells as well."""
        saved, optimizers = checkpoint["cells"], checkpoint["optimizer_states"]
        own = [saved[cell.saved_key] for cell in self.cells]
        order = list(saved)
        checkpoint["optimizer_states"] = [optimizers[order.index(cell.saved_key)] for cell in self.cells]
        self._scheduler_states = [state["scheduler"] for state in own if "scheduler" in state]
        self.clock.seconds_before = checkpoint["seconds"]
        self._outputs["train"].load_state([state["logits"] for state in own], checkpoint["labels"])
        for index, state in enumerate(own):
            self.networks[index].load_trained_state(state["trained"])
            self.progress[index] = Progress(**state["progress"])

    def _optimizers(self) -> Any:
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _active(self) -> list[int]:
        return [index for index, progress in enumerate(self.progress) if progress.active]

    def _metrics(self, split: str) -> dict[int, Metrics]:
        """Return the metrics of every active cell on a split, computed from all outputs since the last call."""
        logits, labels = self._outputs[split].pop(self._active())
        return {index: self.recipe.metrics(values, labels) for index, values in logits.items()}

    def _cells_at_boundaries(
        self, images: Tensor, cached_batch: int | None = None
    ) -> Iterator[tuple[int, Activations | Any]]:
        """Yield the index of each active cell and the activations at its boundary, input side first.

        Args:
            images: Normalised images, shape (batch, channels, height, width).
            cached_batch: Index of the batch if its images are the same in every epoch, else None.
        """
        at: dict[int, list[int]] = {}
        for index in self._active():
            at.setdefault(self.networks[index].start, []).append(index)
        if not len(images):  # the batch has fewer images than there are processes
            yield from ((index, None) for boundary in sorted(at) for index in at[boundary])
            return
        first, activations = 0, self.backbone.enter(images)
        if cached_batch is not None and at:
            first = min(at)
            activations = self._cache.at(first, cached_batch, self.backbone, activations)
        for boundary, reached in self.backbone.onward(first, activations, set(at)):
            for index in at[boundary]:
                with self.clock.charge(self.progress[index]):
                    yield index, reached
