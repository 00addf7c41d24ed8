import pytest
import timm
import torch
from conftest import quick_config
from torch import nn

from blockwise.backbone.layers import record_layers
from blockwise.config.compose import options
from blockwise.partition import AutoPartitioner, SegmentPartitioner, UnitPartitioner


def on_meta(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0).eval()
        size = network.default_cfg["input_size"][-1]
        return record_layers(network, torch.zeros(1, 3, size, size)), network


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("test_vit", "unit"),
        ("resnet18", "unit"),
        ("vgg11", "segment"),
        pytest.param("coat_tiny", "unit", marks=pytest.mark.slow),
    ],
)
def test_units_where_the_architecture_repeats_some(name, chosen):
    partition = AutoPartitioner()(*on_meta(name))
    assert partition.name == chosen
    assert partition.reason


@pytest.mark.parametrize(
    ("auto", "same"),
    [
        (AutoPartitioner(4, "segment"), SegmentPartitioner(num_blocks=4)),
        (AutoPartitioner(4), UnitPartitioner(4)),
        (AutoPartitioner(None, "segment"), SegmentPartitioner(num_blocks=None)),
        (AutoPartitioner(prefer="segment"), SegmentPartitioner(num_blocks=12)),
        (AutoPartitioner(), UnitPartitioner(9)),
    ],
)
def test_it_is_the_partition_of_the_partitioner_that_it_chose(auto, same):
    layers, network = on_meta("resnet18")
    chosen, expected = auto(layers, network), same(layers, network)
    assert (chosen.name, chosen.blocks, chosen.rules) == (expected.name, expected.blocks, expected.rules)
    assert chosen.options == (expected.options or same.options())
    assert auto.blocks(layers, network) == same.blocks(layers, network)


def test_the_papers_backbones_are_cut_into_segments_others_as_suits_them():
    names = [name for name in options("model") if name[0] != "_"]
    preferred = {name: quick_config([f"model={name}"]).partition.prefer for name in names}
    assert {name for name, prefer in preferred.items() if prefer != "segment"} == {
        "efficientnet_lite0",
        "timm",
        "torchvision",
    }


def test_a_plain_network_has_segments():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    partition = AutoPartitioner()(record_layers(network, torch.zeros(1, 3, 4, 4)), network)
    assert (partition.name, len(partition)) == ("segment", 3)
    assert partition.reason == "the architecture repeats no units"
