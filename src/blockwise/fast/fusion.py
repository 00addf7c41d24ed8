"""Fuse frozen convolutions with their activations on a CPU, with weights in oneDNN's memory layout.

The backward pass of a frozen convolution needs only the output of its activation, which shows where the gradient is
zero, so the input can be freed. The input gradient is computed by the same kernel with flipped weights.

The operators are the ones that torch.compile uses for inference on a CPU. They are part of PyTorch but undocumented, so
`can_fuse` tries them first. Without them everything works, but more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from blockwise.fast.depthwise import (
    DepthwiseConv2d,
    frozen_input_gradient,
    is_depthwise,
    is_simple,
    put_zeros_between,
)
from blockwise.fast.folding import called, only_user
from blockwise.fast.gpu.epilogue import fuse_epilogues
from blockwise.fast.inplace import ACTIVATIONS, OverwritingHardtanh

Activation = tuple[str, list[float]]


class FrozenConv2d(nn.Module):
    """A convolution with frozen weights, fused with the activation after it.

    Args:
        conv: The convolution.
        activation: One of `ACTIVATIONS`; None for none.
    """

    def __init__(self, conv: Any, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.activation = _activation(activation)
        self._sides: Sequence[int] = ()
        self._forward: _Kernel | None = None
        self._backward: _Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(convolution(x)) for `x` of shape (batch, channels, height, width)."""
        x = x.to(self.conv.weight.dtype)
        if x.shape[2:] != self._sides:
            self._prepare(x.shape[2:])
        # without a gradient, skip the autograd function, so that nothing is saved for the backward pass
        return _Frozen.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.run(x)

    def _prepare(self, sides: torch.Size) -> None:
        """Set kernel and padding for inputs of a new size; usually called once."""
        self._sides = sides
        depthwise = isinstance(self.conv, DepthwiseConv2d)
        weight, padding = self.conv.weight_and_padding(sides) if depthwise else (self.conv.weight, self.conv.padding)
        self.weight, self.padding = weight.detach(), padding
        self._forward = self._backward = None

    def run(self, x: Tensor) -> Tensor:
        """Like `forward`, but without autograd."""
        if self._forward is None:
            conv = self.conv
            self._forward = _Kernel(self.weight, conv.bias, self.padding, conv.stride, conv.groups, self.activation, x)
        return self._forward(x)

    def input_gradient(self, grad: Tensor, output: Tensor | None, size: torch.Size) -> Tensor:
        """Return the gradient of the input.

        Args:
            grad: Gradient of the output.
            output: The output; None if there is no activation.
            size: Shape of the input, (batch, channels, height, width).
        """
        conv = self.conv
        if output is not None:
            grad = _through_activation(grad, output, self.activation)
        depthwise = is_depthwise(conv)
        if max(conv.stride) > 1:
            if not (depthwise and grad.dtype == torch.bfloat16):
                return frozen_input_gradient(grad, self.weight, size, conv.stride, self.padding, conv.groups)
            grad = put_zeros_between(grad, size, self.weight.shape[2:], conv.stride, self.padding)
        if self._backward is None:
            flipped = self.weight.flip(2, 3)
            flipped = flipped if depthwise else flipped.transpose(0, 1)
            padding = [k - 1 - pad for k, pad in zip(self.weight.shape[2:], self.padding, strict=True)]
            self._backward = _Kernel(flipped, None, padding, (1, 1), conv.groups, ("none", []), grad)
        return self._backward(grad)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: FrozenConv2d) -> Tensor:
        output = conv.run(x)
        ctx.conv, ctx.size = conv, x.shape
        ctx.save_for_backward(output if conv.activation[0] != "none" else None)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.conv.input_gradient(grad, *ctx.saved_tensors, ctx.size), None


class _Kernel:
    """oneDNN's convolution with weights reordered once for inputs of the shape of `example`; other shapes also work."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        padding: Sequence[int],
        stride: Sequence[int],
        groups: int,
        activation: Activation,
        example: Tensor,
    ) -> None:
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        settings = (list(padding), list(stride), [1, 1], groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *settings, list(example.shape))
        self.rest = (None if bias is None else bias.detach(), *settings, *activation, "")

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, *self.rest)


@cache
def can_fuse() -> bool:
    """Return whether this build of PyTorch has oneDNN and its operators."""
    try:
        conv = nn.Conv2d(2, 2, 1).requires_grad_(requires_grad=False)
        return FrozenConv2d(conv, nn.ReLU())(torch.zeros(1, 2, 3, 3)).shape == (1, 2, 3, 3)
    except (AttributeError, RuntimeError):
        return False


def fusion_for(device: torch.device) -> Callable[[fx.GraphModule], None] | None:
    """Return what fuses the convolutions of a stage on a device; None if nothing does."""
    if device.type == "cuda":
        return fuse_epilogues
    return fuse_convolutions if device.type == "cpu" and can_fuse() else None


def fuse_convolutions(stage: fx.GraphModule) -> None:
    """Replace the convolutions of a frozen stage, and the activations after them, by `FrozenConv2d`."""
    for node in list(stage.graph.nodes):
        conv = called(stage, node)
        if not _can_be_fused(conv):
            continue
        activation = None
        user = only_user(node)
        if user is not None and type(called(stage, user)) in (*ACTIVATIONS, OverwritingHardtanh):
            activation = called(stage, user)
            user.replace_all_uses_with(node)
            stage.graph.erase_node(user)
        node.target = f"fused_{node.name}"
        stage.add_submodule(node.target, FrozenConv2d(conv, activation))
    stage.delete_all_unused_submodules()
    stage.recompile()


def _can_be_fused(conv: Any) -> bool:
    return is_depthwise(conv) or (type(conv) is nn.Conv2d and conv.groups == 1 and is_simple(conv))


def _activation(module: Any) -> Activation:
    """Return oneDNN's name of an activation and its parameters."""
    if module is None:
        return "none", []
    if isinstance(module, nn.Hardtanh):  # includes ReLU6
        return "hardtanh", [module.min_val, module.max_val]
    if isinstance(module, nn.LeakyReLU):
        return "leaky_relu", [module.negative_slope]
    return "relu", []


def _through_activation(grad: Tensor, output: Tensor, activation: Activation) -> Tensor:
    name, numbers = activation
    if name == "hardtanh":
        return torch.ops.aten.hardtanh_backward(grad, output, *numbers)
    if name == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(grad, output, *numbers, self_is_result=True)
    return torch.ops.aten.threshold_backward(grad, output, 0)
