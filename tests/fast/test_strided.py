import copy

import pytest
import torch
from torch import fx, nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.stages import stage_backbone
from blockwise.fast.strided import replace_strided
from blockwise.partition import LayerPartitioner


def staged(*layers):
    network = nn.Sequential(*layers)
    return network, fx.symbolic_trace(copy.deepcopy(network))


@pytest.mark.parametrize("stride", [2, (3, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_values_and_gradients(stride, bias):
    torch.manual_seed(0)
    network, stage = staged(nn.Conv2d(3, 8, 1, stride, bias=bias), nn.ReLU(), nn.Conv2d(8, 4, 3))
    replace_strided(stage)
    images = torch.randn(2, 3, 17, 19)
    expected, actual = network(images), stage(images)
    assert torch.allclose(expected, actual, atol=1e-6)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, one), (other, two) in zip(network.named_parameters(), stage.named_parameters(), strict=True):
        assert name == other
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-4)
    assert stage.get_submodule("0").stride == (1, 1)


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(3, 8, 1), nn.Conv2d(64, 8, 1, 2), nn.Conv2d(4, 4, 1, 2, groups=4)],
)
def test_others_stay_as_they_are(conv):
    _, stage = staged(conv)
    before = stage.get_submodule("0")
    replace_strided(stage)
    assert stage.get_submodule("0") is before


@pytest.mark.slow
def test_a_network_that_crashed_trains():
    import timm

    from blockwise import load_backbone, make_partition

    assert timm.is_model("fastvit_t8")
    backbone = load_backbone("timm:fastvit_t8", pretrained=False, image_size=128)
    partition = make_partition(backbone)
    cut = stage_backbone(backbone.network, partition, torch.randn(2, 3, 128, 128)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    stage = cut.stages[0].requires_grad_()
    for _ in range(20):
        activations = cut.run(0, cut.enter(images), stage)
        sum(value.float().sum() for value in activations.values()).backward()
        for parameter in stage.parameters():
            parameter.grad = torch.zeros_like(parameter)


def test_stages_do_without_them():
    network = nn.Sequential(nn.Conv2d(3, 8, 1, 2), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    layers = record_layers(network, torch.zeros(1, 3, 16, 16))
    backbone = stage_backbone(network, LayerPartitioner()(layers, network), torch.randn(2, 3, 16, 16))
    assert backbone.stages[0].get_submodule("0").stride == (1, 1)
    assert backbone.frozen[0].get_submodule("0").stride == (1, 1)
