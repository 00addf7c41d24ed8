"""Run activations in place if nothing else reads their input; this halves the memory of a step and memory traffic.

An activation may overwrite the output of the layer before it if both are in the same stage and the layer's backward
pass does not need its output. Otherwise it might overwrite values that another cell or a residual connection reads.
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

# activations whose gradient can be computed from their output
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
FUNCTIONS = (F.relu, F.leaky_relu)
SUMS = (operator.add, torch.add)


def forbid_inplace(network: nn.Module) -> None:
    """Turn in-place operation off in all modules."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


def allow_inplace(stage: fx.GraphModule) -> None:
    """Run the activations of a stage in place where that is safe."""
    for node in stage.graph.nodes:
        module = called(stage, node)
        if type(module) is BatchNormAct2d and type(module.act) in ACTIVATIONS:
            module.act = _overwriting(module.act)  # only this activation reads the norm's output
        elif node.args and _may_be_overwritten(stage, node.args[0]):
            if type(module) in ACTIVATIONS:
                # a separate module, since the original may also be called where this is not safe
                node.target = f"{node.target}_overwriting"
                stage.add_submodule(node.target, _overwriting(module))
            elif node.op == "call_function" and node.target in FUNCTIONS:
                node.kwargs = {**node.kwargs, "inplace": True}
    stage.recompile()


class OverwritingHardtanh(nn.Hardtanh):
    """Clips values in place; PyTorch's own in-place version keeps a copy of the input, which is not needed."""

    def forward(self, x: Tensor) -> Tensor:
        """Clip `x` in place and return it."""
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
    if isinstance(activation, nn.Hardtanh):  # includes ReLU6
        return OverwritingHardtanh(activation.min_val, activation.max_val)
    activation = copy.deepcopy(activation)
    activation.inplace = True
    return activation


def _may_be_overwritten(stage: fx.GraphModule, node: object) -> bool:
    """Return whether a value is computed in this stage, read once, and not needed by its producer's backward pass."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_function":
        return node.target in SUMS
    kind = type(called(stage, node))
    return kind in CONVOLUTIONS or (kind in NORMS and kind is not BatchNormAct2d)
