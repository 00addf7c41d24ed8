import pytest
import timm
import torch
import torchvision

from blockwise.backbone.layers import record_layers
from blockwise.errors import InputError
from blockwise.partition import UnitPartitioner, find_units

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gcvit_xxtiny", "crossvit_tiny_240")]


def on_meta(make):
    with torch.device("meta"):
        network = make().eval()
        config = getattr(network, "default_cfg", None)
        size = config["input_size"][-1] if config else 224
        return network, record_layers(network, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(
    ("name", "prefix", "number"),
    [
        ("vit_tiny_patch16_224", "blocks.", 12),
        ("beit_base_patch16_224", "blocks.", 12),
        ("swin_tiny_patch4_window7_224", "layers.{}.blocks.", 12),
        ("convnext_atto", "stages.{}.blocks.", 12),
        ("resnet50", "layer", 16),
        ("resnetv2_50", "stages.{}.blocks.", 16),
        ("regnety_002", "s", 13),
        ("mobilenetv2_100", "blocks.", 16),  # one of the 17 is the only one of its class
        ("densenet121", "features.denseblock", 58),
        ("convmixer_768_32", "blocks.", 32),
        ("mvitv2_tiny", "stages.{}.blocks.", 10),
        ("levit_128s", "stages.", 9),
    ],
)
def test_units_are_what_the_architecture_repeats(name, prefix, number):
    network, layers = on_meta(lambda: timm.create_model(name, num_classes=0))
    repeated = [unit for unit in find_units(layers, network) if unit.repeated]
    assert len(repeated) == number
    assert all(layers[unit.first].name.startswith(prefix.partition("{")[0]) for unit in repeated)
    assert not any(layers[unit.first].beside for unit in repeated)


@pytest.mark.parametrize(
    ("name", "number"),
    [("vit_b_16", 12), ("swin_t", 12), ("efficientnet_b0", 16), ("googlenet", 9), ("squeezenet1_1", 8), ("vgg11", 0)],
)
def test_units_of_torchvision(name, number):
    options = {"init_weights": False} if name == "googlenet" else {}
    network, layers = on_meta(lambda: torchvision.models.get_model(name, **options))
    assert sum(unit.repeated for unit in find_units(layers, network)) == number


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hrnet_w18_small", *SLOW])
def test_units_contain_every_layer_once(name):
    network, layers = on_meta(lambda: timm.create_model(name, num_classes=0))
    units = find_units(layers, network)
    assert [unit.first for unit in units] == [0, *(unit.last + 1 for unit in units[:-1])]
    assert units[-1].last == len(layers) - 1
    weighted = [sum(layer.kind == "weighted" for layer in layers[unit.first : unit.last + 1]) for unit in units]
    assert max(weighted) <= 0.3 * sum(weighted)  # also where several values are always needed


def test_units_are_merged_to_the_number_asked_for():
    network, layers = on_meta(lambda: timm.create_model("test_vit", num_classes=0))
    every = UnitPartitioner(None)(layers, network)
    assert len(every) == 7
    assert len(UnitPartitioner()(layers, network)) == 7  # fewer than the usual twelve
    with pytest.raises(InputError, match="the backbone has 7 units, so choose 1 to 7, or null to keep every unit"):
        UnitPartitioner(99)(layers, network)
    assert len(UnitPartitioner(3)(layers, network)) == 3
    starts = {block.first for block in every.blocks}
    assert {block.first for block in UnitPartitioner(3)(layers, network).blocks} <= starts
    assert every.rules == 1  # a partitioner of its own, so records cannot be mistaken for older ones
