"""A cell: its scope and learning rate, its own stages and head, and its progress.

Frozen means the same as in Keras: no gradients, and norms in inference mode, even if a trainer calls `train()`.
With `requires_grad=False` alone, the running statistics of batch norms would drift.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from blockwise.backbone.layers import Layer, is_norm
from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.results.record import Metrics, Status
from blockwise.training.scopes import Scope

NormMode = Literal["train", "eval"]
NORM_MODES: tuple[NormMode, ...] = ("train", "eval")


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep: a scope at a learning rate."""

    scope: Scope
    lr: float

    @property
    def key(self) -> str:
        """The cell's name, unique within a sweep."""
        return cell_key(self.scope.name, self.lr)


def cell_key(scope: str, lr: float) -> str:
    """Return the name of the cell of a scope and a learning rate."""
    return f"{scope}@{lr:g}"


class CellNetwork(nn.Module):
    """A cell's head and its copies of the stages that it trains; all other stages are frozen and shared.

    Attributes:
        start: The boundary from which the cell continues: before its first trained stage, or at the features.
        own: The cell's stages, by index.
        head: The new classifier.
    """

    def __init__(
        self, backbone: StagedBackbone, scope: Scope, num_classes: int, *, norm: NormMode = "train", seed: int = 0
    ) -> None:
        super().__init__()
        partition = backbone.partition
        if backbone.whole:
            stages = [0] if scope.blocks else []
        else:
            stages = sorted({stage for block in scope.blocks for stage in partition.stages_of(block)})
        trained = [layer for block in scope.blocks for layer in partition.layers_of(block)]
        self.start = stages[0] if stages else len(backbone)
        self.own = nn.ModuleDict({str(stage): copy.deepcopy(backbone.stages[stage]) for stage in stages})
        for module in self.own.values():
            freeze_except(module, trained)
        self.head = _new_head(backbone.num_features, num_classes, seed)
        self._trained = frozenset(layer.name for layer in trained)
        self._norm = norm

    def train(self, mode: bool = True) -> CellNetwork:  # noqa: FBT001, FBT002 (torch's signature)
        """Set the trained layers to training mode; frozen layers of the same stages stay in inference mode."""
        self.training = self.own.training = mode
        self.head.train(mode)
        for module in self.own.values():
            set_mode(module, self._trained, training=mode, norm=self._norm)
        return self

    def forward(self, backbone: StagedBackbone, activations: Activations) -> Tensor:
        """Return logits, shape (batch, classes), in float32, from the activations at the boundary `start`."""
        for stage in range(self.start, len(backbone)):
            module = self.own[str(stage)] if str(stage) in self.own else None  # noqa: SIM401 (a ModuleDict has no get)
            activations = backbone.run(stage, activations, module)
        with torch.autocast(next(self.head.parameters()).device.type, enabled=False):
            return self.head(backbone.features(activations).float())

    def trainable(self) -> list[nn.Parameter]:
        """Return all parameters that train, the head's last."""
        return [*self.trained_parameters(), *self.head.parameters()]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the blocks that train, without the head's."""
        return [parameter for parameter in self.own.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, norm buffers included, by the backbone's names and `head.*`."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        for module in self.own.values():
            layers = tuple(f"{name}." for name in self._trained)
            parameters = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            changed = {k: v for k, v in module.state_dict().items() if k in parameters or k.startswith(layers)}
            state.update(changed)
        return state

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `trained_state` returned."""
        current = self.trained_state()
        with torch.no_grad():
            for name, tensor in state.items():
                current[name].copy_(tensor)


def _new_head(num_features: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a new linear head; all cells with the same seed start with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Linear(num_features, num_classes)


def freeze_except(module: nn.Module, trained: Sequence[Layer]) -> None:
    """Freeze all parameters except those of the trained layers."""
    names = {parameter for layer in trained for parameter in layer.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def set_mode(module: nn.Module, trained: Collection[str], *, training: bool, norm: NormMode = "train") -> None:
    """Set the trained layers to training mode, everything else to inference mode.

    Args:
        module: A stage of a backbone.
        trained: Names of the trained layers (modules).
        training: False sets everything to inference mode.
        norm: With `train`, the norms of trained layers use batch statistics and update their running statistics. With
            `eval`, they stay in inference mode; their weights and biases still train.
    """
    module.eval()
    if not training:
        return
    for name, child in module.named_modules():
        if name in trained and not (norm == "eval" and is_norm(child)):
            child.train()


@dataclass
class Progress:
    """The state of a cell in training.

    Attributes:
        status: `running`, `stopped` early, `diverged`, or `finished` (trained and tested).
        history: `train` and `val` metrics of each epoch.
        best_epoch: The epoch with the highest validation accuracy, counted from 0 (the first one on a tie), or None.
        best_state: The trained tensors after that epoch.
        test: Metrics on the test images, after testing.
        predictions: True and predicted class of every test image, after testing.
        seconds: Time spent on this cell alone.
    """

    status: Status = "running"
    history: list[dict[str, Metrics]] = field(default_factory=list)
    best_epoch: int | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    test: Metrics | None = None
    predictions: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def active(self) -> bool:
        """Whether the cell still trains."""
        return self.status == "running"

    @property
    def best(self) -> dict[str, Metrics] | None:
        """Train and val metrics of the best epoch."""
        return None if self.best_epoch is None else self.history[self.best_epoch]

    def end_epoch(self, train: Metrics, val: Metrics, patience: int | None) -> bool:
        """Add the metrics of an epoch and return whether it is the best one so far."""
        self.history.append({"train": train, "val": val})
        if not (math.isfinite(train["loss"]) and math.isfinite(val["loss"])):
            self.status = "diverged"
            return False
        improved = self.best is None or val["top1"] > self.best["val"]["top1"]
        if improved:
            self.best_epoch = len(self.history) - 1
        elif patience is not None and len(self.history) - 1 - (self.best_epoch or 0) >= patience:
            self.status = "stopped"
        return improved
