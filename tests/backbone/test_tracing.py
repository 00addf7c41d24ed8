import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from blockwise.backbone.layers import record_layers
from blockwise.backbone.partition import Block, Partition
from blockwise.backbone.stages import stage_backbone
from blockwise.backbone.tracing import trace


class Network(nn.Module):
    """Two convolutions with something in between that the default tracer refuses."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3)
        self.register_buffer("mask", torch.randn(1, 1, 4, 1, 1))
        self.plain = torch.randn(1, 4, 1, 1)

    def between(self, x):
        return x

    def forward(self, x):
        return self.second(self.between(self.first(x))).mean((2, 3))


class ComputesWithABuffer(Network):
    def between(self, x):
        return x + (self.mask.squeeze(1) * 2).expand(x.shape[0], -1, -1, -1)


class ExpandsAConstant(Network):
    def between(self, x):
        return x * self.plain.expand(x.shape[0], -1, -1, -1)


class WritesItems(Network):
    def between(self, x):
        x[:, :2] = x[:, 2:] + 1
        x[:, 0, 0] += 1
        return x


class WritesIntoParts(Network):
    def between(self, x):
        x[:, 1:3].zero_()
        x[0].fill_(2.0)
        x[..., 0].mul_(3)
        return x


class WritesInPlace(Network):
    def between(self, x):
        y = x.mul_(2)
        x.add_(1)
        return x + y


class MakesATensorOfItsSize(Network):
    def between(self, x):
        batch, channels, height, width = x.shape
        ones = torch.ones(batch, channels, height, width, device=x.device)
        return x + ones * torch.arange(width, device=x.device) + torch.full((batch, 1, 1, 1), 2.0, device=x.device)


class ConvertsShapes(Network):
    def between(self, x):
        size = int(x.shape[-1] ** 0.5) + len(x.shape)
        return F.pad(x, (0, size)) if x.ndim == 4 and x.shape[2] > 2 else x


class LeavesAutocast(Network):
    def between(self, x):
        with torch.autocast(device_type=x.device.type, enabled=False):
            return (x.float() @ x.float().transpose(-1, -2)).to(x.dtype)


@fx.wrap
def not_to_be_traced(x, weight):
    return F.conv2d(x, weight)


class CallsAWrappedFunction(Network):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def between(self, x):
        return not_to_be_traced(x, self.weight)


NETWORKS = [
    ComputesWithABuffer,
    ExpandsAConstant,
    WritesItems,
    WritesIntoParts,
    WritesInPlace,
    MakesATensorOfItsSize,
    ConvertsShapes,
    LeavesAutocast,
    CallsAWrappedFunction,
]


def cut_before_the_last_layer(network):
    network.eval().requires_grad_(requires_grad=False)
    layers = tuple(record_layers(network, torch.zeros(1, 3, 8, 8)))
    blocks = (Block(0, 0, len(layers) - 2), Block(1, len(layers) - 1, len(layers) - 1))
    return stage_backbone(network, Partition("test", layers, blocks), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_stages_compute_what_the_network_does(network):
    torch.manual_seed(0)
    network, images = network().eval(), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        staged = cut_before_the_last_layer(network)
        boundaries = {i: {n: v.clone() for n, v in a.items()} for i, a in staged.boundaries(images, {0, 1, 2})}
        assert torch.allclose(staged(images), expected, atol=1e-6)
        for boundary in (0, 1):  # nothing that cells share is overwritten
            activations = boundaries[boundary]
            staged.run(boundary, activations)
            again = dict(staged.boundaries(images, {boundary}))[boundary]
            assert all(torch.equal(value, again[name]) for name, value in activations.items())


@pytest.mark.parametrize("network", [n for n in NETWORKS if n is not LeavesAutocast])  # meta has no autocast
def test_no_device_is_part_of_the_graph(network):
    staged = cut_before_the_last_layer(network()).to("meta")
    assert staged(torch.zeros(3, 3, 8, 8, device="meta")).device.type == "meta"


def test_a_region_without_autocast_stays_one():
    torch.manual_seed(0)
    network, images = LeavesAutocast().eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(images)
        staged = cut_before_the_last_layer(network)
        assert torch.equal(staged(images), expected)


def test_constants_become_buffers():
    network = ExpandsAConstant().eval()
    graph = trace(network, torch.zeros(2, 3, 8, 8))
    buffers = dict(network.named_buffers())
    read = [node.target for node in graph.nodes if node.op == "get_attr"]
    assert read
    assert set(read) <= set(buffers)


def test_other_traces_go_on_as_before():
    trace(CallsAWrappedFunction().eval(), torch.zeros(2, 3, 8, 8))
    graph = fx.symbolic_trace(CallsAWrappedFunction().eval()).graph
    assert any(node.target is not_to_be_traced for node in graph.nodes)
    assert torch.autocast("cpu", enabled=False).__enter__.__func__.__module__.startswith("torch.")
    assert "expand" not in vars(torch.Tensor)
