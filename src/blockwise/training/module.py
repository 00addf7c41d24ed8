"""The LightningModule: cells of one backbone, trained side by side on the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from blockwise.backbone.load import HeadKind
from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.data.batches import derive_seed
from blockwise.data.datamodule import Batch
from blockwise.data.loaders import check_lengths
from blockwise.data.pixels.on_device import to_device
from blockwise.fast.fusion import fusion_for
from blockwise.fast.gpu.graphs import CudaGraphs, Graphs
from blockwise.policies import STATIC, Phase, phases
from blockwise.recipe.metrics import predictions
from blockwise.recipe.parameter_groups import OptimizerFactory, parameter_groups
from blockwise.recipe.recipe import Recipe
from blockwise.results.record import Metrics
from blockwise.search import Exhaustive, Search, stops_cells
from blockwise.training.candidates import stop_cells
from blockwise.training.cells import Cell, CellNetwork, Progress
from blockwise.training.distributed import average, batch_fraction, is_distributed, rank
from blockwise.training.outputs import Clock, EpochOutputs
from blockwise.training.step.activation_cache import ActivationCache
from blockwise.training.step.cell import CellStep
from blockwise.training.step.graphed import GraphedBatches, Key
from blockwise.training.step.image_cache import ImageCache
from blockwise.training.step.side_by_side import Evaluation, Idle, Part, Training, run

# the number of training images, and the positions of those of each batch
Positions = tuple[int, list[Sequence[int]]]
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
        positions: Returns the number of training images and the positions of those of each batch in an epoch, so that
            the frozen stages' output is cached for them too, up to the same size; None if the images change from epoch
            to epoch.
        folds: Number of folds; each cell then has a network per fold, which is validated on the images that it does not
            train on, and one that trains on all images, which is tested and stored. None has one network per cell.
        search: Says which cells stop before the last epoch.
        lanes: Number of cells that train at once on a GPU, as CUDA graphs; 0 trains without graphs, one after another.
        tell: Tells the user what runs without graphs, and why.

    Attributes:
        networks: The cells' own networks, in the order of `cells`.
        of_folds: Their networks for each fold.
        progress: The state of each cell.
        clock: Time spent on the run.
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
        positions: Callable[[int], Positions | None] = lambda _epoch: None,
        folds: int | None = None,
        search: Search | None = None,
        lanes: int = 0,
        tell: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = backbone
        self.cells = list(cells)
        self.recipe = recipe or Recipe()
        self.search = search or Exhaustive()
        norm = self.recipe.norm
        make = partial(CellNetwork, backbone, num_classes=num_classes, norm=norm, head=head, seed=seed)
        networks = [make(cell.scope) for cell in cells]
        self.networks: Sequence[CellNetwork] = nn.ModuleList(networks)  # type: ignore[assignment]
        of_folds = [nn.ModuleList(make(cell.scope) for _ in range(folds or 0)) for cell in cells]
        self.of_folds: Sequence[Sequence[CellNetwork]] = nn.ModuleList(of_folds)  # type: ignore[assignment]
        self._per_image: Collection[str] = ()
        # norms that use batch statistics need two images, which a fold may not have left of a small last batch
        self._least = 2 if norm == "train" or (networks and networks[0].statistics()) else 1
        self.progress = [Progress() for _ in cells]
        self.clock = Clock()
        self._make_optimizer = optimizer
        self._seed = seed
        self._keep_bytes = keep_bytes
        self._lanes = lanes
        self._tell = tell
        self._graphed: GraphedBatches | None = None
        self._steps: list[list[CellStep]] = []
        self._scaled = False
        self._cache = ActivationCache(0)
        self._images: ImageCache | None = None
        self._positions_in = positions
        self._positions: tuple[int, Positions | None] | None = None
        self._outputs = {split: EpochOutputs(len(self.cells), num_classes) for split in ("train", "val", "test")}
        self._phases: list[list[Phase]] = []
        self._epoch: int | None = None
        self._saved: list[list[dict[str, Any]]] = []

    def setup(self, stage: str) -> None:
        """Prepare the frozen stages for the device and the precision of the trainer."""
        del stage
        device = self.trainer.strategy.root_device
        self.backbone.freeze(HALF.get(self.trainer.precision, torch.float32), fuse=fusion_for(device))
        self._scaled = self.trainer.precision == "16-mixed"
        self._channels_last()
        self._cache = ActivationCache(self._keep_bytes)
        self._images = None
        policy, epochs = self.recipe.policy, self._max_epochs()
        self._phases = [phases(policy(cell.policy), cell.scope.blocks, epochs) for cell in self.cells]
        self._begin(0)
        graphs = self._graphs(device)
        self._graphed = None if graphs is None else GraphedBatches(self.backbone, graphs, self._tell)

    def _graphs(self, device: torch.device) -> Graphs | None:
        """Return what records CUDA graphs; None if batches have no fixed shape, or processes exchange gradients."""
        fixed = device.type == "cuda" and not is_distributed() and not any(self.of_folds)
        return CudaGraphs(device, self._lanes) if fixed and self._lanes else None

    def teardown(self, stage: str) -> None:
        """Forget the graphs, since Lightning moves the weights."""
        del stage
        self._graphed = None

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
        for network in self._of_cell(index):
            network.begin(until_now[-1], {block for phase in until_now for block in phase.blocks})

    def _of_cell(self, index: int) -> list[CellNetwork]:
        """Return all networks of a cell: the one that trains on all images first."""
        return [self.networks[index], *self.of_folds[index]]

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one optimizer per network, over the parameters that it trains and no others."""
        make = partial(CellStep, self.backbone, recipe=self.recipe, scaled=self._scaled)
        self._steps = [
            [make(network, self._optimizer(cell, network)) for network in self._of_cell(index)]
            for index, cell in enumerate(self.cells)
        ]
        steps = [step for of_cell in self._steps for step in of_cell]
        if self.recipe.scheduler is not None:
            epochs = self._max_epochs()
            total = self.trainer.estimated_stepping_batches
            check_lengths(self.trainer)
            batches = int(total) // epochs
            for step in steps:
                step.scheduler = self.recipe.scheduler(step.optimizer, epochs, batches)
        return [step.optimizer for step in steps]

    def _optimizer(self, cell: Cell, network: CellNetwork) -> Optimizer:
        recipe = self.recipe
        groups = parameter_groups(
            network.head.parameters(),
            network.block_parameters(),
            lr=cell.lr,
            block_lr=recipe.block_lr,
            layer_decay=recipe.layer_decay,
            no_decay=recipe.no_decay,
            apart=cell.policy != STATIC,
        )
        return self._make_optimizer(groups)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train every active cell on one batch."""
        if self.current_epoch != self._epoch:  # not in a hook: Lightning calls none if training resumes within an epoch
            self._begin(self.current_epoch)
        images, labels, *folds = batch
        if is_distributed() and len(labels) < self._least:  # this process's part of a small last batch
            images, labels, folds = images[:0], labels[:0], [fold[:0] for fold in folds]
        self._outputs["train"].add_labels(labels if labels.ndim == 1 else labels.argmax(1))
        # each cell draws the same random numbers whether it trains alone or beside others
        seed = derive_seed(self._seed, self.current_epoch, batch_idx, rank())
        of_folds = self._parts(images, *folds, held_out=False)
        fractions = [
            batch_fraction(len(labels), labels.device),
            *(batch_fraction(len(part.rows), labels.device, self._least) for part in of_folds),
        ]
        parts = [None, *of_folds]
        works: dict[Key, Training | Idle] = {}
        for index in self._active():
            for number, (step, fraction) in enumerate(zip(self._steps[index], fractions, strict=True)):
                if fraction:
                    works[index, number] = Training(step, seed, fraction, parts[number])
                elif fraction is not None:
                    works[index, number] = Idle(step)
        first, activations = self._entry(batch_idx, images, works)
        for (index, number), logits in self._run("train", first, activations, labels, works):
            if number == 0:
                self._outputs["train"].add_logits(index, logits)
        self._end_step(batch_idx)

    def _entry(self, batch_idx: int, images: Tensor, works: Mapping[Key, Training | Idle]) -> tuple[int, Activations]:
        """Return the boundary from which the cells of a training batch continue, and the activations there."""
        activations = self.backbone.enter(images)
        first = min((work.boundary for work in works.values() if isinstance(work, Training)), default=0)
        known = self._positions_of(self.current_epoch) if first and self._keep_bytes else None
        if known is None:
            return 0, activations
        count, positions = known
        if self._images is None:
            self._images = ImageCache(self._keep_bytes, count)
        return first, self._images.at(first, positions[batch_idx], self.backbone, activations)

    def _positions_of(self, epoch: int) -> Positions | None:
        if self._positions is None or self._positions[0] != epoch:
            self._positions = epoch, self._positions_in(epoch)
        return self._positions[1]

    def _parts(self, images: Tensor, folds: Sequence[int] = (), *, held_out: bool) -> list[Part]:
        """Return the images on which the network of each fold is evaluated, or else trained; none without folds."""
        if not any(self.of_folds):
            return []
        if not self._per_image and len(images) > 1:
            self._per_image = self.backbone.per_image(images[:2])
        rows = [
            [row for row, fold in enumerate(folds) if (fold == own) == held_out] for own in range(len(self.of_folds[0]))
        ]
        return [Part(to_device(own, images.device, torch.long), self._per_image) for own in rows]

    def _end_step(self, batch_idx: int) -> None:
        """Update the learning rates."""
        schedule = self.recipe.scheduler
        last_batch = batch_idx + 1 == self.trainer.num_training_batches
        if schedule is not None and (schedule.interval == "step" or last_batch):
            for index in self._active():
                for step in self._steps[index]:
                    assert step.scheduler is not None
                    step.scheduler.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate every active cell on one validation batch."""
        self._evaluate("val", batch, cached_batch=batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate every active cell on one test batch."""
        del batch_idx
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Batch, cached_batch: int | None = None) -> None:
        images, labels, *folds = batch
        self._outputs[split].add_labels(labels)
        works = self._evaluations(images, *folds)
        if not len(labels) or not works:
            return
        first, activations = 0, self.backbone.enter(images)
        if cached_batch is not None:
            first = min(work.boundary for work in works.values())
            activations = self._cache.at(first, cached_batch, self.backbone, activations)
        whole: dict[int, Tensor] = {}
        for key, logits in self._run(split, first, activations, labels, works):
            if (part := works[key].part) is None:
                self._outputs[split].add_logits(key[0], logits)
            else:
                whole.setdefault(key[0], logits.new_empty(len(labels), *logits.shape[1:]))[part.rows] = logits
        for index, logits in whole.items():
            self._outputs[split].add_logits(index, logits)

    def _evaluations(self, images: Tensor, folds: Sequence[int] | None = None) -> dict[Key, Evaluation]:
        """Return what to evaluate: of each cell the network of all images, or each network on its own fold."""
        if folds is None or not any(self.of_folds):
            return {(index, 0): Evaluation(self.backbone, self.networks[index]) for index in self._active()}
        parts = self._parts(images, folds, held_out=True)
        return {
            (index, number + 1): Evaluation(self.backbone, self.of_folds[index][number], part)
            for index in self._active()
            for number, part in enumerate(parts)
            if len(part.rows)
        }

    def _run(self, kind: str, first: int, activations: Activations, labels: Tensor, works: Any) -> Any:
        """Run all active cells on a batch, and yield the key and the logits of each."""
        return run(self.backbone, kind, first, activations, labels, works, charge=self._charge, graphed=self._graphed)

    def _charge(self, key: Key, seconds: float) -> None:
        self.progress[key[0]].seconds += seconds

    def on_validation_epoch_start(self) -> None:
        """Average the running statistics of norms over processes, each of which has seen its part of the batches."""
        average(tensor for index in self._active() for own in self._of_cell(index) for tensor in own.statistics())

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics of every active cell, update its best epoch, apply early stopping and the search."""
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
        self._stop_cells(self.current_epoch + 1)
        self._free_stopped_cells()
        if not self._active():
            self.trainer.should_stop = True

    def _stop_cells(self, epochs: int) -> None:
        """Stop the cells that the search stops after this number of epochs; after the last, all are finished."""
        if epochs < self._max_epochs() and stops_cells(self.search):
            partition, select_by = self.backbone.partition, self.recipe.select_by
            stop_cells(self.search, partition, self.cells, self._phases, self.progress, select_by, epochs)

    def _free_stopped_cells(self) -> None:
        """Free what nothing reads any more: the optimizers' states of stopped cells, and the weights of pruned ones."""
        for steps, progress in zip(self._steps, self.progress, strict=True):
            if not progress.active:
                for step in steps:
                    step.optimizer.state.clear()
            if progress.status == "pruned":
                progress.best_state = {}

    def on_train_start(self) -> None:
        """Set training mode, restore the schedules; stop at once if all cells in the checkpoint have stopped early."""
        for index in range(len(self.cells)):
            for network in self._of_cell(index):
                network.train()  # Lightning calls this no more
        for steps, states in zip(self._steps, self._saved, strict=False):  # nothing is saved in a run that begins
            for step, state in zip(steps, states, strict=True):
                step.load_state(state)
        if self._graphed is not None:
            for (step,) in self._steps:
                step.count_on_device()
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
        """Store the test metrics and predictions of each cell; one whose outputs are not finite has diverged."""
        logits, labels = self._outputs["test"].pop(self._active())
        for index, values in logits.items():
            progress = self.progress[index]
            progress.test = self.recipe.metrics(values, labels)
            progress.predictions["test"] = predictions(values, labels)
            progress.status = "finished" if all(map(math.isfinite, progress.test.values())) else "diverged"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the cells' trained tensors, their progress, and the outputs of the epoch so far."""
        logits, labels = self._outputs["train"].state()
        checkpoint["state_dict"] = {}
        # Lightning counts the steps of optimizers that it wraps alone
        checkpoint["global_step"] = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
        checkpoint["labels"] = labels
        checkpoint["seconds"] = self.clock.seconds
        checkpoint["cells"] = {
            cell.saved_key: {
                **self._steps[index][0].state(goes_on=progress.active),
                "progress": vars(progress),
                "logits": logits[index],
                "folds": [step.state(goes_on=progress.active) for step in self._steps[index][1:]],
            }
            for index, (cell, progress) in enumerate(zip(self.cells, self.progress, strict=True))
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the cells; the checkpoint may contain other cells as well."""
        saved, optimizers = checkpoint["cells"], checkpoint["optimizer_states"]
        own = [saved[cell.saved_key] for cell in self.cells]
        order, each = list(saved), 1 + len(own[0].get("folds", ()))
        firsts = [each * order.index(cell.saved_key) for cell in self.cells]
        checkpoint["optimizer_states"] = [optimizers[first + number] for first in firsts for number in range(each)]
        self._saved = [[state, *state.get("folds", ())] for state in own]
        self.clock.seconds_before = checkpoint["seconds"]
        self._outputs["train"].load_state([state["logits"] for state in own], checkpoint["labels"])
        for index, states in enumerate(self._saved):
            for network, state in zip(self._of_cell(index), states, strict=True):
                network.load_trained_state(state["trained"])
            self.progress[index] = Progress(**states[0]["progress"])

    def _active(self) -> list[int]:
        return [index for index, progress in enumerate(self.progress) if progress.active]

    def _metrics(self, split: str) -> dict[int, Metrics]:
        """Return the metrics of every active cell on a split, computed from all outputs since the last call."""
        logits, labels = self._outputs[split].pop(self._active())
        return {index: self.recipe.metrics(values, labels) for index, values in logits.items()}
