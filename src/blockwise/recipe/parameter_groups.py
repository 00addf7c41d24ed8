"""Parameter groups of an optimizer: learning rates of head and blocks, and what has no weight decay."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from blockwise.errors import InputError, first_line


class OptimizerFactory(Protocol):
    """Makes the optimizer of a cell, such as `torch.optim.AdamW`."""

    def __call__(self, params: list[dict[str, Any]], /) -> Optimizer:
        """Return an optimizer for parameter groups, each with `params` and `lr`."""


def check_optimizer(make: OptimizerFactory) -> None:
    """Make an optimizer of two parameters and let it take a step.

    Raises:
        InputError: It makes no optimizer, the step fails, or it needs a closure that computes the loss again.
    """
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = make([{"params": parameters, "lr": 1e-3}])
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: {type(optimizer).__name__} is not an optimizer of PyTorch")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if isinstance(optimizer, torch.optim.LBFGS) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise InputError(
            f"optimizer: {type(optimizer).__name__} computes the loss several times per step, which cells side by side "
            "cannot do: choose another"
        )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except Exception as error:  # optimizers fail in many ways
        raise InputError(f"optimizer: {type(optimizer).__name__} cannot take a step ({first_line(error)})") from error


@dataclass(frozen=True)
class BlockParameters:
    """The trained parameters of one block.

    Attributes:
        height: Number of blocks from the head, which is at 0; the last block is at 1.
        parameters: The parameters.
    """

    height: int
    parameters: list[nn.Parameter]


def parameter_groups(
    head: Iterable[nn.Parameter],
    blocks: list[BlockParameters],
    *,
    lr: float,
    block_lr: float | None = None,
    layer_decay: float | None = None,
    no_decay: bool = False,
    apart: bool = False,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a cell, the head's first.

    Args:
        head: Parameters of the head.
        blocks: Trained parameters of each block.
        lr: Learning rate of the head.
        block_lr: Learning rate of the blocks; None uses the head's.
        layer_decay: Factor by which the rate falls per block away from the head, if there are several blocks (Clark et
            al., 2020, "ELECTRA", appendix A; Bao et al., 2022, "BEiT", section 3.2).
        no_decay: Exclude norms and biases from weight decay: everything with a single dimension.
        apart: Give each block a group of its own, since blocks may begin to train in different epochs: PyTorch's fused
            SGD fails if some tensors of a group have momentum and others do not yet.
    """
    base = lr if block_lr is None else block_lr
    groups: list[dict[str, Any]] = [{"params": list(head), "lr": lr}]
    decay = 1.0 if layer_decay is None or len(blocks) < 2 else layer_decay
    if decay == 1.0 and not apart:
        groups.append({"params": [p for block in blocks for p in block.parameters], "lr": base})
    else:
        groups += [{"params": block.parameters, "lr": base * decay**block.height} for block in blocks]
    groups = [group for group in groups if group["params"]]
    return [part for group in groups for part in _by_dimensions(group)] if no_decay else groups


def _by_dimensions(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    matrices = {**group, "params": [p for p in group["params"] if p.ndim > 1]}
    vectors = {**group, "params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0}
    return [part for part in (matrices, vectors) if part["params"]]
