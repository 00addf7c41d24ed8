"""A cell: what it is, the stages and the head it owns, and what has become of it so far."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from blockwise.freezing import NormMode, freeze_except, set_mode
from blockwise.results import Metrics
from blockwise.scopes import Scope
from blockwise.stages import Live, StagedBackbone

Status = Literal["running", "stopped", "diverged", "finished"]


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep: a scope at a learning rate."""

    scope: Scope
    lr: float

    @property
    def key(self) -> str:
        """A name that is unique within a sweep."""
        return cell_key(self.scope.name, self.lr)


def cell_key(scope: str, lr: float) -> str:
    """Return the name of the cell of a scope and a learning rate."""
    return f"{scope}@{lr:g}"


class CellNetwork(nn.Module):
    """The stages that a cell trains, as copies, and its head; the other stages are the shared frozen ones.

    Attributes:
        start: The boundary that the cell runs on from: its first trained stage, or the features.
        own: The cell's stages, by number.
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
        """Put what the cell trains into training mode; what is frozen in its stages stays in inference mode."""
        self.training = self.own.training = mode
        self.head.train(mode)
        for module in self.own.values():
            set_mode(module, self._trained, training=mode, norm=self._norm)
        return self

    def forward(self, backbone: StagedBackbone, live: Live) -> Tensor:
        """Return logits, shape (batch, classes), in float32, from what is live at the boundary `start`."""
        for stage in range(self.start, len(backbone)):
            module = self.own[str(stage)] if str(stage) in self.own else None  # noqa: SIM401 (a ModuleDict has no get)
            live = backbone.run(stage, live, module)
        with torch.autocast(next(self.head.parameters()).device.type, enabled=False):
            return self.head(backbone.features(live).float())

    def trainable(self) -> list[nn.Parameter]:
        """Return all parameters that train, the head's last."""
        return [*self.trained_parameters(), *self.head.parameters()]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the blocks that train, without the head's."""
        return [parameter for parameter in self.own.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training changes, norm buffers included, under the backbone's own names and `head.*`."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        for module in self.own.values():
            layers = tuple(f"{name}." for name in self._trained)
            parameters = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            changed = {k: v for k, v in module.state_dict().items() if k in parameters or k.startswith(layers)}
            state.update(changed)
        return state

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trained_state` returned."""
        current = self.trained_state()
        with torch.no_grad():
            for name, tensor in state.items():
                current[name].copy_(tensor)


def _new_head(num_features: int, num_classes: int, seed: int) -> nn.Linear:
    """Make a linear head; all cells of a seed begin with the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Linear(num_features, num_classes)


@dataclass
class Progress:
    """What has become of a cell so far.

    Attributes:
        status: `running`; `stopped` early; `diverged`; `finished`, tested.
        history: One row an epoch: `train` and `val` metrics.
        best_epoch: The epoch, from 0, with the highest validation accuracy (the first of equals), or None.
        best_state: What the cell trained, as it was after that epoch.
        test: Metrics on the test images, once tested.
        predictions: True and predicted class of every test image, once tested.
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
        """Take in an epoch's metrics and return whether it is the best one so far."""
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
