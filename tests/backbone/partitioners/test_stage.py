import pytest
import timm
import torch
import torchvision

from blockwise.backbone.layers import record_layers
from blockwise.backbone.partitioners.stage import area_and_width
from blockwise.partition import StagePartitioner


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("vit_b_16", 12),
        ("swin_t", 4),
        pytest.param("swin_v2_t", 4, marks=pytest.mark.slow),
        ("convnext_tiny", 4),
        ("efficientnet_b0", 7),
        ("mobilenet_v3_large", 6),
        pytest.param("maxvit_t", 4, marks=pytest.mark.slow),
        ("resnet18", 4),
        pytest.param("densenet121", 4, marks=pytest.mark.slow),
        ("shufflenet_v2_x0_5", 3),
        ("vgg11", 5),
    ],
)
def test_stages_of_torchvision(name, stages):
    with torch.device("meta"):
        network = torchvision.models.get_model(name).eval()
        layers = record_layers(network, torch.zeros(1, 3, 224, 224))
    assert len(StagePartitioner()(layers, network)) == stages


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("test_vit", ["patch_embed.proj", *(f"blocks.{index}.norm1" for index in range(1, 6))]),
        ("convnext_atto", ["stem.0", *(f"stages.{index}.downsample.0" for index in range(1, 4))]),
        ("swin_tiny_patch4_window7_224", ["patch_embed.proj", *(f"layers.{i}.downsample.norm" for i in range(1, 4))]),
        ("mvitv2_tiny", ["patch_embed.proj", *(f"stages.{index}.blocks.0.norm1" for index in range(1, 4))]),
    ],
)
def test_stages_begin_with_their_own_norm(name, starts):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0).eval()
        size = network.default_cfg["input_size"][-1]
        layers = record_layers(network, torch.zeros(1, 3, size, size))
    partition = StagePartitioner()(layers, network)
    assert [layers[block.first].name for block in partition.blocks] == starts
    assert partition.rules == 2  # the first versions gave these norms to the stage before


@pytest.mark.parametrize(
    ("size", "channels", "expected"),
    [
        ((64, 14, 14), 64, (196, 64)),
        ((14, 14, 64), 64, (196, 64)),
        ((14, 14, 64), 256, (196, 64)),  # patches are about to be merged
        ((64, 49, 64), 64, (3136, 64)),  # windows
        ((197, 192), 192, (197, 192)),
        ((512,), 0, (1, 512)),
        ((), 0, (1, 1)),
    ],
)
def test_resolution_and_width(size, channels, expected):
    assert area_and_width(size, channels) == expected
