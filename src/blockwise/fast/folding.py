"""Fold the batch norms of a frozen stage.

In inference mode a batch norm is an affine map. After a convolution it is folded into the convolution's weights (Jacob
et al., 2018, section 3.2); elsewhere it becomes a multiplication and an addition. This saves a pass over memory and the
norm's backward pass, which is slow on the CPU.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from blockwise.fast.depthwise import DepthwiseConv2d

# exactly these types: a subclass may compute something else, such as weight standardisation
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame, DepthwiseConv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


class Affine(nn.Module):
    """A batch norm in inference mode: `x * scale + shift` per channel, for `x` of shape (batch, channels, ...)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", shift.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x * scale + shift`."""
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.shift.view(shape).to(x.dtype), x, self.scale.view(shape).to(x.dtype))


@torch.no_grad()
def fold_norms(stage: fx.GraphModule) -> fx.GraphModule:
    """Return a frozen stage without batch norms that gives the same output up to rounding.

    `stage` is not modified. Modules that need no change are shared with it.
    """
    graph = fx.Graph()
    objects: dict[str, Any] = {}
    copies: dict[fx.Node, fx.Node] = {}

    def call(name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        objects[name] = module
        return graph.call_module(name, (value,))

    for node in stage.graph.nodes:
        norm = called(stage, node)
        if type(norm) not in NORMS or norm.running_mean is None:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op in ("call_module", "get_attr"):
                objects[node.target] = attrgetter(node.target)(stage)
            continue
        before = node.args[0]
        if _takes_norm(stage, before):
            objects[before.target] = fuse_conv_bn_eval(called(stage, before), norm)
            copies[node] = copies[before]
        else:
            copies[node] = call(f"{node.target}_affine", Affine(norm), copies[before])
        activation = getattr(norm, "act", None)
        if activation is not None and not isinstance(activation, nn.Identity):
            copies[node] = call(f"{node.target}_act", activation, copies[node])
    return fx.GraphModule(objects, graph).eval().requires_grad_(requires_grad=False)


def called(stage: fx.GraphModule, node: fx.Node) -> Any:
    """Return the module that a node calls, or None."""
    return stage.get_submodule(str(node.target)) if node.op == "call_module" else None


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that reads a value; None if none does, or several do."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _takes_norm(stage: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node is a convolution that is called once and whose only reader is a norm."""
    calls = sum(other.target == node.target for other in stage.graph.nodes if other.op == "call_module")
    return type(called(stage, node)) in CONVOLUTIONS and len(node.users) == 1 and calls == 1
