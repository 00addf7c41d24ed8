"""Depthwise convolutions with a fast backward pass in bfloat16 on a CPU.

oneDNN, which runs PyTorch's convolutions on a CPU, has no fast kernel for two gradients of depthwise convolutions in
bfloat16 (measured with torch 2.14 and 2.15). The input gradient is 30 to 80 times slower than necessary if the stride
is greater than 1. The weight gradient is 3 to 20 times slower than necessary if the kernel is larger than 3x3. This
module computes both with other, fast kernels. In all other cases PyTorch's own convolution runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding, pad_same
from torch import Tensor, fx, nn
from torch.nn.functional import conv2d, pad

Pair = tuple[int, int]
# side of the largest kernel for which oneDNN has a fast weight gradient
FAST = 3


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that replaces another one and shares its parameters.

    Args:
        conv: The convolution to replace.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.same = isinstance(conv, Conv2dSame)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x`, shape (batch, channels, height, width)."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        if torch.is_grad_enabled() and _in_bfloat16(x):
            return _Bfloat16Depthwise.apply(x, self.weight, self.bias, self.stride, self.padding)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def weight_and_padding(self, sides: Sequence[int]) -> tuple[Tensor, Pair]:
        """Return a kernel and a symmetric padding that give the same convolution without a padded copy of the input.

        TensorFlow's `same` padding depends on the size of the input and may be larger by one at the right and bottom.
        In this case zeros are added to the left and top of the kernel, and the padding is the larger one on all sides.

        Args:
            sides: Height and width of the input.
        """
        if not self.same:
            return self.weight, self.padding  # type: ignore[return-value]
        total = [
            get_same_padding(*arguments, 1) for arguments in zip(sides, self.kernel_size, self.stride, strict=True)
        ]
        height, width = (count - count // 2 for count in total)
        uneven = [count % 2 for count in total]
        return pad(self.weight, (uneven[1], 0, uneven[0], 0)) if any(uneven) else self.weight, (height, width)


def replace_depthwise(stage: fx.GraphModule) -> None:
    """Replace the depthwise convolutions of a stage by `DepthwiseConv2d`; the parameters are shared."""
    # only modules that the graph calls directly: modules inside a leaf are shared with the network
    for name in {str(node.target) for node in stage.graph.nodes if node.op == "call_module"}:
        module = stage.get_submodule(name)
        if type(module) is not DepthwiseConv2d and is_depthwise(module):
            stage.set_submodule(name, DepthwiseConv2d(module))


def is_depthwise(conv: Any) -> bool:
    """Return whether a module is a depthwise convolution with one filter per channel; see also `is_simple`."""
    supported = type(conv) in (nn.Conv2d, Conv2dSame, DepthwiseConv2d)
    return supported and is_simple(conv) and 1 < conv.in_channels == conv.out_channels == conv.groups


def is_simple(conv: Any) -> bool:
    """Return whether a convolution has no dilation and pads with zeros by less than the size of its kernel."""
    if conv.dilation != (1, 1) or conv.padding_mode != "zeros" or not isinstance(conv.padding, tuple):
        return False
    # with more padding, the transposed convolution would need a negative padding
    return all(padding < side for padding, side in zip(conv.padding, conv.kernel_size, strict=True))


def _in_bfloat16(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16


class _Bfloat16Depthwise(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.stride, ctx.padding, ctx.size = stride, padding, x.shape
        # if the weights are frozen, the input is not needed and its memory can be freed
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            _input_gradient(grad, weight, ctx.size, ctx.stride, ctx.padding) if needed[0] else None,
            _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if needed[1] else None,
            grad.sum((0, 2, 3), dtype=torch.float32) if needed[2] else None,
            None,
            None,
        )


def _input_gradient(grad: Tensor, weight: Tensor, size: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """Compute the input gradient: insert zeros between the output gradients, then convolve with the flipped kernel."""
    kernel = weight.shape[2:]
    if max(stride) > 1:
        grad = put_zeros_between(grad, size, kernel, stride, padding)
    around = [k - 1 - pad for k, pad in zip(kernel, padding, strict=True)]
    return conv2d(grad, weight.flip(2, 3), padding=around, groups=size[1])


def frozen_input_gradient(
    grad: Tensor, weight: Tensor, size: torch.Size, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    """Return PyTorch's own input gradient of a convolution, shape `size`; no other gradient is computed."""
    # only its shape is used
    x = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    rest = (stride, padding, (1, 1), False, (0, 0), groups, (True, False, False))
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)[0]


def put_zeros_between(
    grad: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Insert zeros into the output gradient of a strided convolution to get that of a convolution with stride 1.

    Args:
        grad: Gradient of the output, shape (batch, channels, height, width).
        size: Shape of the input, (batch, channels, height, width).
        kernel: Height and width of the kernel.
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal padding.
    """
    sides = [side + 2 * pad - k + 1 for side, pad, k in zip(size[2:], padding, kernel, strict=True)]
    spread = torch.empty((*size[:2], *sides), dtype=grad.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = grad
    return spread


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if min(grad.shape[2:]) < FAST:  # no fast bfloat16 kernel for inputs this small, but they cost little
        return _library_gradient(grad.float(), x.float(), weight.shape[2:], stride, padding)
    if max(weight.shape[2:]) <= FAST:
        return _library_gradient(grad, x, weight.shape[2:], stride, padding)
    return _gradient_by_tiles(grad, x, weight, stride, padding)


def _gradient_by_tiles(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Compute the gradient of a large kernel in tiles, each as the gradient of a small kernel on a shifted input."""
    (height, width), (rows, columns) = weight.shape[2:], x.shape[2:]
    # height and width of the part of the input that a small kernel covers
    covered = [step * (side - 1) + FAST for step, side in zip(stride, grad.shape[2:], strict=True)]
    result = torch.empty(weight.shape)
    for top in range(0, height, FAST):
        for left in range(0, width, FAST):
            above, before = padding[0] - top, padding[1] - left
            # negative padding crops
            shifted = pad(x, (before, covered[1] - columns - before, above, covered[0] - rows - above))
            tile = _library_gradient(grad, shifted, (FAST, FAST), stride, (0, 0))
            tile = tile[:, :, : height - top, : width - left]
            result[:, :, top : top + FAST, left : left + FAST] = tile
    return result


def _library_gradient(grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair) -> Tensor:
    weight = x.new_empty((x.shape[1], 1, *kernel))  # only its shape is used
    rest = (stride, padding, (1, 1), False, (0, 0), x.shape[1], (False, True, False))
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)[1]
