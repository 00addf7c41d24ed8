"""Bias, residual and activation after a frozen convolution, in one pass over memory on a GPU.

PyTorch adds the bias of a convolution on a GPU in a pass of its own, with a slow kernel if the channels come last, and
the sum with a residual and the activation in two more. With frozen weights, the backward pass needs only the output,
which shows where the gradient is zero.

The kernel is written in Triton, which comes with PyTorch on Linux. Without it, everything works, but more slowly.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding, pad_same
from torch import Tensor, fx, nn
from torch.nn import functional as F

from blockwise.fast.depthwise import DepthwiseConv2d, frozen_input_gradient, is_simple
from blockwise.fast.folding import called, only_user
from blockwise.fast.inplace import OverwritingHardtanh

CONVOLUTIONS = (nn.Conv2d, Conv2dSame, DepthwiseConv2d)
CLIPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, OverwritingHardtanh)
RELUS = (F.relu, torch.relu)
SUMS = (operator.add, torch.add, operator.iadd)
Bounds = tuple[float, float]
Padding = tuple[int, ...]
# elements per program
BLOCK = 1024


class ConvEpilogue(nn.Module):
    """A frozen convolution, then its bias, the sum with a residual, and the activation.

    Args:
        conv: The convolution.
        bounds: The bounds of the activation, such as (0, 6) for ReLU6; None for none.
    """

    def __init__(self, conv: Any, bounds: Bounds | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.bounds = bounds
        self._same = isinstance(conv, Conv2dSame) or getattr(conv, "same", False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation(convolution(x) + residual) for `x` of shape (batch, channels, height, width)."""
        conv = self.conv
        x = x.to(conv.weight.dtype)
        padding = conv.padding
        if self._same and (padding := self._padding(x.shape[2:])) == (0, 0):
            x = pad_same(x, list(conv.kernel_size), list(conv.stride))
        # without a gradient, skip the autograd function, so that nothing is saved for the backward pass
        tracked = x.requires_grad or (residual is not None and residual.requires_grad)
        if torch.is_grad_enabled() and tracked:
            return _Frozen.apply(x, residual, self, padding)
        return self.run(x, residual, padding)

    def _padding(self, sides: Sequence[int]) -> tuple[int, ...]:
        """Return TensorFlow's `same` padding if a convolution can do it: if it is the same on opposite sides."""
        conv = self.conv
        total = [get_same_padding(*sizes, 1) for sizes in zip(sides, conv.kernel_size, conv.stride, strict=True)]
        return (0, 0) if any(count % 2 for count in total) else tuple(count // 2 for count in total)

    def run(self, x: Tensor, residual: Tensor | None, padding: Padding) -> Tensor:
        """Like `forward`, but without autograd."""
        conv = self.conv
        output = F.conv2d(x, conv.weight, None, conv.stride, padding, conv.dilation, conv.groups)
        return finish(output, conv.bias, residual, self.bounds)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, layer: ConvEpilogue, padding: Padding) -> Tensor:
        output = layer.run(x, residual, padding)
        ctx.layer, ctx.padding, ctx.size = layer, padding, x.shape
        ctx.save_for_backward(None if layer.bounds is None else output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, (output,) = ctx.layer, ctx.saved_tensors
        grad = grad if output is None else _through_activation(grad, output, layer.bounds)
        conv, own = layer.conv, None
        if ctx.needs_input_grad[0]:
            own = frozen_input_gradient(grad, conv.weight, ctx.size, conv.stride, ctx.padding, conv.groups)
        return own, grad if ctx.needs_input_grad[1] else None, None, None


def _through_activation(grad: Tensor, output: Tensor, bounds: Bounds) -> Tensor:
    if bounds == (0, float("inf")):
        return torch.ops.aten.threshold_backward(grad, output, 0)
    return torch.ops.aten.hardtanh_backward(grad, output, *bounds)


def finish(output: Tensor, bias: Tensor | None, residual: Tensor | None, bounds: Bounds | None) -> Tensor:
    """Return activation(output + bias + residual); `output`, shape (batch, channels, height, width), is overwritten."""
    if bias is None and residual is None and bounds is None:
        return output
    alike = residual is None or (residual.shape == output.shape and residual.dtype == output.dtype and _fits(residual))
    if _fits(output) and alike:
        return _launch(output, bias, residual, bounds)
    output = output if bias is None else output.add_(bias.view(-1, 1, 1))
    output = output if residual is None else output + residual
    return output if bounds is None else output.clamp_(*bounds)


def _fits(values: Tensor) -> bool:
    """Return whether the kernel can read these values as (pixels, channels)."""
    return values.device.type == "cuda" and values.is_contiguous(memory_format=torch.channels_last) and has_triton()


def _launch(output: Tensor, bias: Tensor | None, residual: Tensor | None, bounds: Bounds | None) -> Tensor:
    low, high = (0.0, 0.0) if bounds is None else bounds
    count = output.numel()
    _kernel()[(-(-count // BLOCK),)](
        output,
        output if bias is None else bias,
        output if residual is None else residual,
        count,
        output.shape[1],
        float(low),
        float(high),
        bias is not None,
        residual is not None,
        bounds is not None,
        BLOCK,
    )
    return output


@cache
def has_triton() -> bool:
    """Return whether Triton is installed and knows a GPU."""
    try:
        _kernel()
    except ImportError:
        return False
    return torch.cuda.is_available()


@cache
def _kernel() -> Any:
    from blockwise.fast.gpu.epilogue_kernel import epilogue

    return epilogue


def fuse_epilogues(stage: fx.GraphModule) -> None:
    """Replace the convolutions of a frozen stage, and what follows them, by `ConvEpilogue`."""
    for node in list(stage.graph.nodes):
        conv = called(stage, node)
        if type(conv) not in CONVOLUTIONS or not is_simple(conv):
            continue
        chain, residual, bounds = [node], None, None
        if (added := _sum(node)) is not None:
            chain.append(added[0])
            residual = added[1]
        if (user := only_user(chain[-1])) is not None and (bounds := _bounds(stage, user)) is not None:
            chain.append(user)
        if conv.bias is None and len(chain) == 1:
            continue
        name = f"finished_{node.name}"
        stage.add_submodule(name, ConvEpilogue(conv, bounds))
        # at the place of the last, since the residual may be computed between
        with stage.graph.inserting_before(chain[-1]):
            fused = stage.graph.call_module(name, (node.args[0], residual))
        chain[-1].replace_all_uses_with(fused)
        for old in reversed(chain):
            stage.graph.erase_node(old)
    stage.delete_all_unused_submodules()
    stage.recompile()


def _sum(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the sum of a node's value with another, and that other; None if nothing is added to it."""
    user = only_user(node)
    if user is None or user.op != "call_function" or user.target not in SUMS or user.kwargs or len(user.args) != 2:
        return None
    left, right = user.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left is right:
        return None
    # in place, the value on the left is overwritten, which others may read
    return None if user.target is operator.iadd and left is not node else (user, right if left is node else left)


def _bounds(stage: fx.GraphModule, node: fx.Node) -> Bounds | None:
    """Return the bounds of an activation that clips; None if it does something else."""
    module = called(stage, node)
    if type(module) in CLIPS:
        return (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0, float("inf"))
    return (0, float("inf")) if node.op == "call_function" and node.target in RELUS else None
