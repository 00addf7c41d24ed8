"""Folded against unfolded: the same outputs and the same gradients, up to rounding."""

import pytest
import timm
import torch
from torch import fx, nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.stages import stage_backbone
from blockwise.fast.folding import NORMS, fold_norms
from blockwise.partition import EvenPartitioner


@pytest.mark.parametrize(
    "name", ["stub", "test_resnet", "test_efficientnet", "resnetv2_18", "densenet121", "mobilenetv3_small_050"]
)
def test_outputs_and_gradients_are_the_same(name, stub, realistic):
    network = realistic(stub if name == "stub" else timm.create_model(name, num_classes=0))
    partition = EvenPartitioner(3)(record_layers(network, torch.zeros(1, 3, 64, 64)), network)
    backbone = stage_backbone(network, partition, torch.randn(2, 3, 64, 64))
    images = torch.randn(4, 3, 64, 64, requires_grad=True)
    live = plain = backbone.enter(images)
    for stage in range(len(backbone)):
        live, plain = backbone.run(stage, live), backbone.run(stage, plain, backbone.stages[stage])
    folded, unfolded = backbone.features(live), backbone.features(plain)
    scale = unfolded.abs().max()
    assert (folded - unfolded).abs().max() <= 1e-4 * scale
    direction = torch.randn_like(folded)
    (a,) = torch.autograd.grad(folded, images, direction)
    (b,) = torch.autograd.grad(unfolded, images, direction)
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert not any(type(module) in NORMS for module in backbone.frozen.modules())
    assert any(type(module) in NORMS for module in backbone.stages.modules())


def test_what_needs_no_folding_is_shared_and_nothing_is_changed(realistic):
    network = realistic(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    )
    stage = fx.symbolic_trace(network)
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    folded = fold_norms(stage)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.state_dict().items())
    assert folded.get_submodule("4") is stage.get_submodule("4")
    assert folded.get_submodule("0") is not stage.get_submodule("0")


def test_a_convolution_whose_output_is_read_elsewhere_keeps_its_weights(realistic):
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    network = realistic(Fork())
    images = torch.randn(2, 3, 5, 5)
    assert torch.allclose(fold_norms(fx.symbolic_trace(network))(images), network(images), atol=1e-5)
