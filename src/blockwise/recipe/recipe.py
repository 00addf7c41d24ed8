"""The settings of training that all cells of a study share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor
from torch.nn.functional import cross_entropy

from blockwise.policies import STATIC, Policy, Static
from blockwise.recipe.metrics import compute_metrics
from blockwise.recipe.schedulers import Schedule
from blockwise.results.record import Metrics

NormMode = Literal["train", "eval"]
NORM_MODES: tuple[NormMode, ...] = ("train", "eval")


class Loss(Protocol):
    """The loss of a batch, such as `torch.nn.functional.cross_entropy`."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            logits: Shape (batch, classes).
            labels: Classes, shape (batch,); or, if images are mixed, probabilities, shape (batch, classes).
        """


class MetricsFunction(Protocol):
    """The metrics of a split, such as `blockwise.recipe.metrics.compute_metrics`."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Metrics:
        """Return metrics by name. They must include `loss`, `top1` and the one by which epochs are selected."""


@dataclass(frozen=True)
class Recipe:
    """The training recipe, the same for all cells of a study.

    Attributes:
        policies: The policies that a cell may name: they say which blocks train in an epoch.
        loss: The training loss.
        metrics: Computes the metrics of a split.
        select_by: The validation metric that selects a cell's best epoch; of `loss`, the lowest value.
        block_lr: Learning rate of the trained blocks; None uses the head's.
        layer_decay: Factor by which the learning rate falls per block away from the head, if a scope has several.
        no_decay: Apply no weight decay to norms and biases.
        clip_norm: Largest norm of a cell's gradient; None does not clip.
        scheduler: The learning rate schedule of a cell; None keeps the rates constant.
        norm: Mode of the norms in trained blocks: `train` (batch statistics) or `eval`.
        patience: Stop a cell after this many epochs without a better validation score; None never stops.
    """

    policies: Mapping[str, Policy] = field(default_factory=lambda: {STATIC: Static()})
    loss: Loss = cross_entropy
    metrics: MetricsFunction = compute_metrics
    select_by: str = "top1"
    block_lr: float | None = None
    layer_decay: float | None = None
    no_decay: bool = False
    clip_norm: float | None = None
    scheduler: Schedule | None = None
    norm: NormMode = "eval"
    patience: int | None = None

    def policy(self, name: str) -> Policy:
        """Return the policy of a name; `static` need not be among those chosen, since `head` is always static."""
        return self.policies.get(name, Static())
