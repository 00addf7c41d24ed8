"""Depthwise convolutions whose backward pass in bfloat16 is fast on a CPU.

oneDNN, which runs PyTorch's convolutions on a CPU, has no fast kernel for two gradients of depthwise convolutions in
bfloat16 (measured with torch 2.14 and 2.15): the input's, where the stride is more than one, takes 30 to 80 times as
long as it need; the weights', where the kernel is larger than 3x3, 3 to 20 times. Both are computed here in another
way, by kernels that are fast. Everywhere else PyTorch's own convolution runs.
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
# the side of the largest kernel that oneDNN has a fast weight gradient for
FAST = 3


class DepthwiseConv2d(nn.Conv2d):
    """Computes what a depthwise convolution does, with the very same parameters.

    Args:
        conv: The convolution that it takes the place of.
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
        """Return the convolution of x, shape (batch, channels, height, width)."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        if torch.is_grad_enabled() and _in_bfloat16(x):
            return _Bfloat16Depthwise.apply(x, self.weight, self.bias, self.stride, self.padding)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def weight_and_padding(self, sides: Sequence[int]) -> tuple[Tensor, Pair]:
        """Return a kernel and a padding that make up the convolution without a padded copy of the images.

        TensorFlow's padding depends on the images' sides, and may be larger by one at their end. Then the kernel gets
        zeros at its beginning, and the images as much padding there as at their end.
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
    """Put `DepthwiseConv2d` in the place of the depthwise convolutions of a stage; the parameters stay the same."""
    # what a stage calls, not what lies inside: that is shared with the network
    for name in {str(node.target) for node in stage.graph.nodes if node.op == "call_module"}:
        module = stage.get_submodule(name)
        if type(module) is not DepthwiseConv2d and is_depthwise(module):
            stage.set_submodule(name, DepthwiseConv2d(module))


def is_depthwise(conv: Any) -> bool:
    """Tell whether a module is a depthwise convolution of the common kind: one filter a channel, see `is_simple`."""
    known = type(conv) in (nn.Conv2d, Conv2dSame, DepthwiseConv2d)
    return known and is_simple(conv) and 1 < conv.in_channels == conv.out_channels == conv.groups


def is_simple(conv: Any) -> bool:
    """Tell whether a convolution has no dilation, and no more padding, of zeros, than its kernel reaches."""
    if conv.dilation != (1, 1) or conv.padding_mode != "zeros" or not isinstance(conv.padding, tuple):
        return False
    # more padding would leave no room for the transposed convolution
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
        # frozen weights need no input: it is not kept alive
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _input_gradient(grad, weight, ctx.size, ctx.stride, ctx.padding) if wanted[0] else None,
            _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if wanted[1] else None,
            grad.sum((0, 2, 3), dtype=torch.float32) if wanted[2] else None,
            None,
            None,
        )


def _input_gradient(grad: Tensor, weight: Tensor, size: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """Convolve the gradient, zeros put between its pixels, with the kernel turned around."""
    kernel = weight.shape[2:]
    if max(stride) > 1:
        grad = put_zeros_between(grad, size, kernel, stride, padding)
    around = [k - 1 - pad for k, pad in zip(kernel, padding, strict=True)]
    return conv2d(grad, weight.flip(2, 3), padding=around, groups=size[1])


def put_zeros_between(
    grad: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient that a convolution with stride 1 would have had, from that of one with a larger stride.

    Args:
        grad: Gradient of the output, shape (batch, channels, height, width).
        size: Shape of the input.
        kernel: Sides of the kernel.
        stride: Steps of the convolution.
        padding: Zeros around its input.
    """
    sides = [side + 2 * pad - k + 1 for side, pad, k in zip(size[2:], padding, kernel, strict=True)]
    spread = torch.empty((*size[:2], *sides), dtype=grad.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = grad
    return spread


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if min(grad.shape[2:]) < FAST:  # no fast kernel for images this small; there is little to do anyway
        return _library_gradient(grad.float(), x.float(), weight.shape[2:], stride, padding)
    if max(weight.shape[2:]) <= FAST:
        return _library_gradient(grad, x, weight.shape[2:], stride, padding)
    return _gradient_by_tiles(grad, x, weight, stride, padding)


def _gradient_by_tiles(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Compute the gradient of a large kernel as those of small ones, each of which sees the images shifted."""
    (height, width), (rows, columns) = weight.shape[2:], x.shape[2:]
    # what a small kernel sees of the images
    seen = [step * (side - 1) + FAST for step, side in zip(stride, grad.shape[2:], strict=True)]
    result = torch.empty(weight.shape)
    for top in range(0, height, FAST):
        for left in range(0, width, FAST):
            above, before = padding[0] - top, padding[1] - left
            # a negative padding cuts off
            shifted = pad(x, (before, seen[1] - columns - before, above, seen[0] - rows - above))
            tile = _library_gradient(grad, shifted, (FAST, FAST), stride, (0, 0))
            tile = tile[:, :, : height - top, : width - left]
            result[:, :, top : top + FAST, left : left + FAST] = tile
    return result


def _library_gradient(grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair) -> Tensor:
    weight = x.new_empty((x.shape[1], 1, *kernel))  # only its shape is looked at
    rest = (stride, padding, (1, 1), False, (0, 0), x.shape[1], (False, True, False))
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)[1]
