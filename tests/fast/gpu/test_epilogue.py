"""Convolutions with bias, residual and activation in one pass; on a CPU the same passes run in PyTorch."""

import operator
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import fx, nn
from torch.nn import functional as F

from blockwise.fast.gpu.epilogue import ConvEpilogue, finish, fuse_epilogues


@pytest.mark.parametrize("name", ["stub", "test_resnet", "test_efficientnet", "tf_efficientnet_lite0", "resnetv2_18"])
def test_a_network_stays_the_same_function(name, stub, stays_the_same):
    stays_the_same(stub if name == "stub" else timm.create_model(name, num_classes=0), fuse_epilogues, ConvEpilogue)


class Bottleneck(nn.Module):
    """A convolution, a sum and an activation; `plus` and `activation` are written in several ways."""

    def __init__(self, plus, activation, swapped):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.plus, self.activation, self.swapped = plus, activation, swapped

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        return self.activation(self.plus(x, y) if self.swapped else self.plus(y, x))


@pytest.mark.parametrize("plus", [operator.add, torch.add, operator.iadd])
@pytest.mark.parametrize("activation", [F.relu, torch.relu, nn.ReLU6(), nn.Hardtanh(-0.2, 0.1), torch.sigmoid])
@pytest.mark.parametrize("swapped", [False, True])
def test_sums_and_activations_join_their_convolution(plus, activation, swapped):
    torch.manual_seed(0)
    network = Bottleneck(plus, activation, swapped).requires_grad_(False)
    stage = fx.symbolic_trace(network)
    for node in stage.graph.nodes:
        if plus is operator.iadd and node.target is operator.add:  # tracing turns one into the other
            node.target = plus
    fuse_epilogues(stage)
    x = torch.randn(2, 4, 6, 6)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    # a leaf may not be overwritten
    outputs = [module(value * 1.0) for module, value in zip((network, stage), inputs, strict=True)]
    assert torch.allclose(*outputs, atol=1e-6)
    unsafe = plus is operator.iadd and swapped  # overwrites what the first convolution has read
    if not unsafe:
        for output in outputs:
            output.sum().backward()
        assert torch.allclose(*(value.grad for value in inputs), atol=1e-6)
    joined = sum(isinstance(module, (nn.ReLU6, nn.Hardtanh)) for module in stage.modules())
    assert joined == (isinstance(activation, nn.Module) and unsafe)


def test_a_value_that_is_not_a_number_stays_one():
    values = torch.full((1, 2, 3, 3), float("nan"))
    assert finish(values, torch.ones(2), None, (0, 6)).isnan().all()


KERNEL = """
import torch
from blockwise.fast.gpu.epilogue import BLOCK, _launch, finish
torch.manual_seed(0)
for shape in ((2, 5, 3, 3), (3, 96, 9, 7)):
    for bias in (None, torch.randn(shape[1])):
        for residual in (None, torch.randn(shape).contiguous(memory_format=torch.channels_last)):
            for bounds in (None, (0.0, float("inf")), (0.0, 0.5)):
                values = torch.randn(shape).contiguous(memory_format=torch.channels_last)
                values[0, 0, 0, 0] = float("nan")
                expected = finish(values.clone(), bias, residual, bounds)
                assert torch.allclose(expected, _launch(values, bias, residual, bounds), equal_nan=True)
"""


@pytest.mark.slow
def test_the_kernel_computes_what_pytorch_does():
    """In Triton's interpreter; tests/gpu compares on a GPU."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
