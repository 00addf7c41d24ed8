"""Which layers of a cell's own stages train, and in which mode they run.

Frozen means what Keras means by it: no gradient, and norms in inference mode, whatever `train()` calls a trainer
makes. `requires_grad=False` alone lets the running statistics of batch norms drift.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from torch import nn

from blockwise.layers import Layer, is_norm

NormMode = Literal["train", "eval"]
NORM_MODES: tuple[NormMode, ...] = ("train", "eval")


def freeze_except(module: nn.Module, trained: Sequence[Layer]) -> None:
    """Let only the parameters of some layers require gradients."""
    names = {parameter for layer in trained for parameter in layer.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def set_mode(module: nn.Module, trained: Collection[str], *, training: bool, norm: NormMode = "train") -> None:
    """Put the trained layers into training mode, everything else into inference mode.

    Args:
        module: Some stages of a backbone.
        trained: Names of the layers (modules) that train.
        training: False puts everything into inference mode.
        norm: `train`: the norm of a trained layer uses batch statistics and updates its running ones. `eval`: it
            stays in inference mode; its weight and bias still train.
    """
    module.eval()
    if not training:
        return
    for name, child in module.named_modules():
        if name in trained and not (norm == "eval" and is_norm(child)):
            child.train()
