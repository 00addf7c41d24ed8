"""Strided pointwise convolutions of images, without the kernel of oneDNN that writes outside its memory.

On a CPU, the weight gradient of a convolution with a kernel of 1, a stride above 1 and 3 input channels, in
channels-last format, corrupts the heap (measured with torch 2.14.1 and oneDNN 3.12). The process crashes, or goes on
with damaged memory. RepVGG, MobileOne and FastViT begin with such a layer. A convolution with a kernel of 1 reads one
position per output, so these positions are taken first, and a convolution without a stride follows: the same up to
rounding.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from blockwise.fast.folding import called

# layers that read images have 3 input channels, or 4 with a mask; all others keep PyTorch's own kernels and last bits
FEW_CHANNELS = 4


def replace_strided(stage: fx.GraphModule) -> None:
    """Take the positions that strided pointwise convolutions of few channels read; the parameters are shared."""
    for node in list(stage.graph.nodes):
        conv = called(stage, node)
        if type(conv) is not nn.Conv2d or not _is_affected(conv):
            continue
        rows, columns = conv.stride
        positions = (slice(None), slice(None), slice(None, None, rows), slice(None, None, columns))
        with stage.graph.inserting_before(node):
            node.args = (stage.graph.call_function(operator.getitem, (node.args[0], positions)), *node.args[1:])
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta")
        plain.weight, plain.bias = conv.weight, conv.bias
        stage.set_submodule(str(node.target), plain.train(conv.training))
    stage.recompile()


def _is_affected(conv: nn.Conv2d) -> bool:
    pointwise = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    return pointwise and max(conv.stride) > 1 and conv.in_channels <= FEW_CHANNELS
