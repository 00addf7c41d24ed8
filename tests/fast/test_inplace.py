"""In-place activations never overwrite a value that is read again."""

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn import functional as F

from blockwise.fast.inplace import ACTIVATIONS, OverwritingHardtanh, allow_inplace, forbid_inplace


class Fork(nn.Module):
    """An activation called after a norm, where it may overwrite, and on a value that is read again."""

    def __init__(self, activation):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), BatchNormAct2d(4, act_layer=nn.ReLU6)
        self.act = activation

    def forward(self, x):
        y = self.act(self.norm1(self.conv1(self.act(x))))
        z = self.conv2(y)
        z = self.norm2(z) + F.relu(z) + x
        return F.relu(z + y) + self.act(y)


def run(network, images):
    network.zero_grad()
    images = images.clone().requires_grad_()
    output = network(images)
    output.square().sum().backward()
    return [output, images.grad, *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_outputs_and_gradients_stay_bit_for_bit(kind, training):
    torch.manual_seed(0)
    network = Fork(kind(inplace=True))
    forbid_inplace(network)
    images = torch.randn(3, 4, 8, 8)
    before = images.clone()
    stage = fx.GraphModule(network, fx.Tracer(autowrap_functions=(F.relu,)).trace(network.train(training)))
    expected = run(stage, images)
    allow_inplace(stage)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(stage, images), strict=True))
    assert torch.equal(images, before)
    overwriting = [node.target for node in stage.graph.nodes if str(node.target).endswith("_overwriting")]
    assert overwriting == ["act_overwriting"]  # of three calls
    assert [n.kwargs.get("inplace", False) for n in stage.graph.nodes if n.target is F.relu] == [False, True]


def test_clipping_in_place_keeps_no_copy():
    kept = []
    x = torch.randn(5, 7, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        value = x + 0
        clipped = OverwritingHardtanh(0.0, 6.0)(value)
    assert kept == [value.data_ptr()] == [clipped.data_ptr()]
    (clipped * 3).sum().backward()
    assert torch.equal(x.grad, 3.0 * ((x > 0) & (x < 6)))
