"""Fused frozen convolutions against PyTorch's own: outputs and input gradients."""

import pytest
import timm
import torch
from timm.models.vgg import VGG
from torch import fx, nn

from blockwise.fast.depthwise import DepthwiseConv2d
from blockwise.fast.fusion import FrozenConv2d, can_fuse, fuse_convolutions
from blockwise.fast.inplace import ACTIVATIONS, allow_inplace

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this PyTorch has no oneDNN")

CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "groups": 8},
    {"kernel_size": 5, "padding": 2, "stride": 2, "groups": 8},
    {"kernel_size": (1, 7), "padding": (0, 3), "bias": False},
]


def output_and_gradient(module, images, direction):
    images = images.clone().requires_grad_()
    output = module(images)
    output.backward(direction[..., : output.shape[2], : output.shape[3]].to(output.dtype))
    return output, images.grad


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_computes_what_the_convolution_does(settings, activation, dtype, tolerance):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, **settings).requires_grad_(requires_grad=False).to(dtype)
    conv = DepthwiseConv2d(conv) if conv.groups > 1 else conv
    function = activation() if activation else nn.Identity()
    images, direction = torch.randn(3, 8, 9, 11).to(dtype), torch.randn(3, 8, 9, 11).to(dtype)
    # compute the reference in the same precision, since clipping depends on the rounded value
    expected = output_and_gradient(nn.Sequential(conv, function), images, direction)
    fused = FrozenConv2d(conv, activation() if activation else None)
    for batch in (3, 3, 2):  # weights are packed for the first batch size and also used for a smaller one
        found = output_and_gradient(fused, images[:batch], direction[:batch])
        for a, b in zip(expected, found, strict=True):
            assert (a[:batch] - b).abs().max() <= tolerance * a.abs().max()


def test_only_the_output_is_kept():
    def kept(activation):
        tensors = []
        conv = FrozenConv2d(nn.Conv2d(4, 8, 1).requires_grad_(requires_grad=False), activation)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(tuple(t.shape)) or t, lambda t: t):
            conv(torch.randn(2, 4, 5, 5, requires_grad=True))
        return tensors

    assert kept(nn.ReLU()) == [(2, 8, 5, 5)]
    assert kept(None) == []


def test_what_is_read_twice_is_not_fused():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.act(y) + y + self.act(self.conv(self.conv(y)))

    network = Fork().requires_grad_(requires_grad=False)
    images = torch.randn(2, 4, 5, 5)
    stage = fx.symbolic_trace(network)
    allow_inplace(stage)
    fuse_convolutions(stage)
    activations = [m.activation[0] for m in stage.modules() if isinstance(m, FrozenConv2d)]
    assert activations == ["none", "none", "relu"]
    assert torch.allclose(stage(images), network(images), atol=1e-6)


def make(name):
    if name == "vgg":  # its convolutions have no norms
        return VGG((8, "M", 16, "M"), num_classes=0, mlp_ratio=0.01)
    return timm.create_model(name, num_classes=0)


@pytest.mark.parametrize("name", ["stub", "test_resnet", "test_efficientnet", "resnetv2_18", "vgg"])
def test_a_network_stays_the_same_function(name, stub, stays_the_same):
    stays_the_same(stub if name == "stub" else make(name), fuse_convolutions, FrozenConv2d)
