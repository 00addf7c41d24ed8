"""Activations overwrite their input where nothing else reads it: half the memory of a step, and less traffic.

An activation may do so behind a layer whose backward pass does not look at its output, inside one stage. Anywhere else
it would overwrite what another cell, or a residual connection, still reads.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional as F

from blockwise.fast.folding import CONVOLUTIONS, NORMS, called

# those whose gradient follows from their output alone
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
FUNCTIONS = (F.relu, F.leaky_relu)
SUMS = (operator.add, torch.add)


def forbid_inplace(network: nn.Module) -> None:
    """Have no module overwrite its input."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def allow_inplace(stage: fx.GraphModule) -> None:
    """Have the activations of a stage overwrite their input where that is safe."""
    for node in stage.graph.nodes:
        module = called(stage, node)
        if type(module) is BatchNormAct2d and type(module.act) in ACTIVATIONS:
            module.act = _overwriting(module.act)  # nobody else sees what lies between a norm and its own activation
        elif node.args and _may_be_overwritten(stage, node.args[0]):
            if type(module) in ACTIVATIONS:
                # a module of its own, since the same one may be called where it is not safe
                node.target = f"{node.target}_overwriting"
                stage.add_submodule(node.target, _overwriting(module))
            elif node.op == "call_function" and node.target in FUNCTIONS:
                node.kwargs = {**node.kwargs, "inplace": True}
    stage.recompile()


class OverwritingHardtanh(nn.Hardtanh):
    """Clips values in place; PyTorch's own keeps a copy of what it overwrites, although the output is enough."""

    def forward(self, x: Tensor) -> Tensor:
        """Clip x and return it."""
        return _Clip.apply(x, self.min_val, self.max_val)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.low, ctx.high = low, high
        x = x.clamp_(low, high)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.aten.hardtanh_backward(grad, *ctx.saved_tensors, ctx.low, ctx.high), None, None


def _overwriting(activation: Any) -> nn.Module:
    if isinstance(activation, nn.Hardtanh):  # ReLU6 too
        return OverwritingHardtanh(activation.min_val, activation.max_val)
    activation = copy.deepcopy(activation)
    activation.inplace = True
    return activation


def _may_be_overwritten(stage: fx.GraphModule, node: object) -> bool:
    """Tell whether a value is made in this stage, read once, and of no use to the backward pass of what made it."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_function":
        return node.target in SUMS
    kind = type(called(stage, node))
    return kind in CONVOLUTIONS or (kind in NORMS and kind is not BatchNormAct2d)
