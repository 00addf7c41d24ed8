"""A cell: its scope and learning rate, its own stages and head, and its progress.

Frozen means the same as in Keras: no gradients, and norms in inference mode, even if a trainer calls `train()`.
With `requires_grad=False` alone, the running statistics of batch norms would drift.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from blockwise.backbone.heads import logits, new_head
from blockwise.backbone.layers import is_norm
from blockwise.backbone.load import HeadKind
from blockwise.backbone.lora import add_lora
from blockwise.backbone.stages import Activations, StagedBackbone
from blockwise.data.batches import derive_seed
from blockwise.policies import STATIC, Phase
from blockwise.recipe.parameter_groups import BlockParameters
from blockwise.recipe.recipe import NormMode
from blockwise.results.record import Metrics, Status, selection_score
from blockwise.results.store import settings_hash
from blockwise.training.scopes import Scope
from blockwise.training.trainable import trainable


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep: a scope at a learning rate, under a policy.

    Attributes:
        scope: The scope.
        lr: The learning rate.
        policy: The name of the policy.
        policy_hash: Hash of the settings of the policy; empty for `static`.
    """

    scope: Scope
    lr: float
    policy: str = STATIC
    policy_hash: str = ""

    @property
    def key(self) -> str:
        """The cell's name, unique within a sweep."""
        return cell_key(self.scope.name, self.lr, self.policy)

    @property
    def saved_key(self) -> str:
        """The cell's name in checkpoints."""
        return saved_key(self.key, self.scope.blocks, self.policy_hash)


def saved_key(key: str, blocks: Sequence[int], policy_hash: str) -> str:
    """Return the name of a cell in checkpoints: it tells apart policies with other settings, and other best blocks."""
    if key.startswith("top"):
        key = f"{key}[{'+'.join(map(str, blocks))}]"
    return f"{key}-{policy_hash}" if policy_hash else key


def cell_key(scope: str, lr: float, policy: str = STATIC) -> str:
    """Return the name of the cell of a scope, a learning rate and a policy."""
    rate = f"{lr:g}" if float(f"{lr:g}") == lr else repr(lr)
    return f"{scope}@{rate}" + ("" if policy == STATIC else f"@{policy}")


def competitors(cell: Cell, cells: Iterable[Cell]) -> str:
    """Return a hash of the cells that compete with one in a search, itself included: those of its policy."""
    return settings_hash({"cells": sorted(other.saved_key for other in cells if other.policy == cell.policy)})


def cell_names(cells: Sequence[Cell]) -> list[str]:
    """Return short names of cells, with rate and policy only where they differ."""
    rates, policies = ({getattr(cell, key) for cell in cells} for key in ("lr", "policy"))
    return [
        "@".join(
            [
                cell.scope.name,
                *([f"{cell.lr:g}"] if len(rates) > 1 else []),
                *([cell.policy] if len(policies) > 1 and cell.policy != STATIC else []),
            ]
        )
        for cell in cells
    ]


class CellNetwork(nn.Module):
    """A cell's head and its copies of the stages that it trains; all other stages are frozen and shared.

    What trains may change from epoch to epoch; see `begin`.

    Attributes:
        scope: The scope of the cell.
        start: The boundary from which the cell continues: before the first stage that trains or has been trained, or at
            the features.
        phase: What trains, and which blocks have trained.
        own: The cell's stages, by index.
        head: The new classifier.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        scope: Scope,
        num_classes: int,
        *,
        norm: NormMode = "eval",
        head: HeadKind = "linear",
        seed: int = 0,
    ) -> None:
        super().__init__()
        partition = backbone.partition
        self._num_blocks, self._end = len(partition), len(backbone)
        self.scope = scope
        self._stages = {b: [0] if backbone.whole else list(partition.stages_of(b)) for b in scope.blocks}
        self._trainable = {block: trainable(partition, block, scope.part) for block in scope.blocks}
        stages = sorted({stage for stages in self._stages.values() for stage in stages})
        self.own = nn.ModuleDict({str(stage): copy.deepcopy(backbone.stages[stage]) for stage in stages})
        self.head = new_head(backbone, num_classes, head, seed)
        self._norm = norm
        if scope.part == "lora":
            self._add_lora(seed)
        self.begin(Phase(scope.blocks), scope.blocks)

    def _add_lora(self, seed: int) -> None:
        """Add low-rank updates; from then on, they are what trains in a block."""
        names = {name for part in self._trainable.values() for name in part.parameters}
        for stage, module in self.own.items():
            own = names & {name for name, _ in module.named_parameters()}
            add_lora(module, own, self.scope.rank or 1, derive_seed(seed, int(stage)))
        updates = {name for module in self.own.values() for name, p in module.named_parameters() if p.requires_grad}
        for block, part in self._trainable.items():
            layers = tuple(f"{name.removesuffix('.weight')}.lora_" for name in part.parameters)
            names = {name for name in updates if name.startswith(layers)}
            self._trainable[block] = replace(part, parameters=frozenset(names))

    def begin(self, phase: Phase, changed: Collection[int]) -> None:
        """Begin an epoch: set what trains in it.

        Args:
            phase: The blocks that train, and whether the head does.
            changed: These blocks, and all that have trained before.
        """
        self.phase = phase, frozenset(changed)
        parts = [self._trainable[block] for block in phase.blocks]
        names = {name for part in parts for name in part.parameters}
        self._layers = frozenset(name for part in parts for name in part.layers)
        self._used = frozenset(str(stage) for block in changed for stage in self._stages[block])
        self.start = min(map(int, self._used), default=self._end)
        for module in self.own.values():
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in names)
        self.head.requires_grad_(phase.head)
        self.train(self.training)

    def train(self, mode: bool = True) -> CellNetwork:  # noqa: FBT001, FBT002 (torch's signature)
        """Set the layers that train to training mode; frozen layers of the same stages stay in inference mode."""
        self.training = self.own.training = mode
        self.head.train(mode)
        for module in self.own.values():
            set_mode(module, self._layers, training=mode, norm=self._norm)
        return self

    def forward(self, backbone: StagedBackbone, activations: Activations) -> Tensor:
        """Return logits, shape (batch, classes), in float32, from the activations at the boundary `start`."""
        for stage in range(self.start, len(backbone)):
            module = self.own[str(stage)] if str(stage) in self._used else None
            activations = backbone.run(stage, activations, module)
        return logits(self.head, backbone.features(activations))

    def trainable(self) -> list[nn.Parameter]:
        """Return all parameters that train in this epoch, the head's last."""
        blocks = [parameter for parameter in self.own.parameters() if parameter.requires_grad]
        return blocks + [parameter for parameter in self.head.parameters() if parameter.requires_grad]

    def block_parameters(self) -> list[BlockParameters]:
        """Return the parameters of each block that ever train; one in several blocks is in the last of them."""
        left = {name: parameter for module in self.own.values() for name, parameter in module.named_parameters()}
        blocks = []
        for block in reversed(self.scope.blocks):
            names = [name for name in left if name in self._trainable[block].parameters]
            blocks.append(BlockParameters(self._num_blocks - block, [left.pop(name) for name in names]))
        return [block for block in reversed(blocks) if block.parameters]

    def num_trainable(self) -> int:
        """Return the number of all parameters that ever train."""
        blocks = [parameter for block in self.block_parameters() for parameter in block.parameters]
        return sum(parameter.numel() for parameter in (*blocks, *self.head.parameters()))

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, norm buffers included, by the backbone's names and `head.*`."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        parameters = {name for part in self._trainable.values() for name in part.parameters}
        layers = tuple(f"{name}." for part in self._trainable.values() for name in part.layers)
        for module in self.own.values():
            state.update({k: v for k, v in module.state_dict().items() if k in parameters or k.startswith(layers)})
        return state

    def statistics(self) -> list[Tensor]:
        """Return the running statistics that training changes in this epoch."""
        layers = ("head.", *(f"{name}." for name in self._layers if self._norm == "train"))
        state = self.trained_state().items()
        return [t for name, t in state if name.startswith(layers) and name.endswith(("running_mean", "running_var"))]

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `trained_state` returned."""
        current = self.trained_state()
        with torch.no_grad():
            for name, tensor in state.items():
                current[name].copy_(tensor)


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
        status: `running`, `stopped` early, `diverged`, `pruned` (stopped by a search) or `finished` (trained
            and tested).
        history: `train` and `val` metrics of each epoch.
        best_epoch: The epoch with the best validation score, counted from 0, or None.
        best_state: The trained tensors after that epoch.
        test: Metrics on the test images, after testing.
        predictions: What is kept of every image, by split: of `val` after the best epoch, of `test` after testing.
        seconds: Time spent on this cell alone.
    """

    status: Status = "running"
    history: list[dict[str, Metrics]] = field(default_factory=list)
    best_epoch: int | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    test: Metrics | None = None
    predictions: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def active(self) -> bool:
        """Whether the cell still trains."""
        return self.status == "running"

    @property
    def best(self) -> dict[str, Metrics] | None:
        """Train and val metrics of the best epoch."""
        return None if self.best_epoch is None else self.history[self.best_epoch]

    def end_epoch(self, train: Metrics, val: Metrics, patience: int | None, select_by: str = "top1") -> bool:
        """Add the metrics of an epoch and return whether it is the best one so far."""
        self.history.append({"train": train, "val": val})
        if not (math.isfinite(train["loss"]) and math.isfinite(val["loss"])):
            self.status = "diverged"
            return False
        improved = self.best is None or selection_score(val, select_by) > selection_score(self.best["val"], select_by)
        if improved:
            self.best_epoch = len(self.history) - 1
        elif patience is not None and len(self.history) - 1 - (self.best_epoch or 0) >= patience:
            self.status = "stopped"
        return improved
