"""Depthwise convolutions in bfloat16 against PyTorch's own in float64."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import fx, nn

from blockwise.fast.depthwise import DepthwiseConv2d, replace_depthwise

SHAPES = [  # kernel, stride, padding
    (3, 1, 1),
    (3, 2, 0),
    (3, 2, 1),
    (5, 1, 2),
    (5, 2, 2),
    (5, 3, 0),
    (7, 1, 3),
    ((3, 5), (2, 1), (1, 0)),
    (1, 2, 0),
]


def gradients(module, images, direction):
    module.zero_grad()
    images = images.clone().requires_grad_()
    output = module(images)
    output.backward(direction.to(output.dtype))
    return [output, images.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [*SHAPES, (3, 2, "same"), (5, 2, "same"), (5, 1, "same")])
@pytest.mark.parametrize("size", [(9, 9), (12, 7)])
def test_gradients_are_those_of_a_convolution(kernel, stride, padding, size, bias, autocast):
    torch.manual_seed(0)
    kind = Conv2dSame if padding == "same" else nn.Conv2d
    conv = kind(6, 6, kernel, stride, 0 if padding == "same" else padding, groups=6, bias=bias)
    # numbers that bfloat16 holds exactly, so that only sums are rounded
    conv = conv.bfloat16().double()
    images = torch.randn(4, 6, *size).bfloat16()
    direction = torch.randn(conv(images.double()).shape).bfloat16()
    expected = gradients(conv, images.double(), direction)
    module = DepthwiseConv2d(conv.float() if autocast else conv.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = gradients(module, images, direction)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() <= 1e-2 * a.abs().max()


def test_float32_is_left_to_pytorch():
    conv = nn.Conv2d(6, 6, 5, 2, 2, groups=6)
    images, direction = torch.randn(4, 6, 9, 9), torch.randn(4, 6, 5, 5)
    expected, found = gradients(conv, images, direction), gradients(DepthwiseConv2d(conv), images, direction)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_frozen_weights_keep_no_input_alive():
    def saved(*, frozen):
        kept = []
        conv = DepthwiseConv2d(nn.Conv2d(6, 6, 3, 2, 1, groups=6).bfloat16().requires_grad_(not frozen))
        images = torch.randn(4, 6, 9, 9).bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
            conv(images)
        return kept

    assert (4, 6, 9, 9) in saved(frozen=False)
    assert (4, 6, 9, 9) not in saved(frozen=True)


def test_only_depthwise_convolutions_are_replaced():
    class Unusual(nn.Conv2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2),
        nn.Conv2d(6, 6, 3, groups=6, padding="same"),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 1, groups=6, padding=1),
        Unusual(6, 6, 3, groups=6),
        nn.Sequential(Conv2dSame(6, 6, 3, 2, groups=6)),
    )
    parameters = dict(network.named_parameters())
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name in [*map(str, range(8)), "8.0"]:
        value = graph.call_module(name, (value,))
    graph.output(value)
    stage = fx.GraphModule(network, graph)
    replace_depthwise(stage)
    replaced = {name for name, module in stage.named_modules() if type(module) is DepthwiseConv2d}
    assert replaced == {"0", "8.0"}
    assert not any(type(module) is DepthwiseConv2d for module in network.modules())
    assert all(parameter is parameters[name] for name, parameter in stage.named_parameters())
    assert parameters.keys() == dict(stage.named_parameters()).keys()
