"""The last layer with positions, in networks of several kinds."""

import pytest
import timm
import torch
import torchvision

from blockwise.exports.use.positions import last_positions

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network_of(name):
    torch.manual_seed(0)
    kind, name = name.split(":")
    if kind == "torchvision":
        network = getattr(torchvision.models, name)(image_size=64, num_classes=3)
        torch.nn.init.normal_(network.heads[-1].weight)  # torchvision begins with zeros
        return network.eval()
    options = {"img_size": 64} if name.startswith(("vit", "swin", "deit", "beit", "mixer")) else {}
    return timm.create_model(name, num_classes=3, **options).eval()


@pytest.mark.parametrize(
    ("name", "expected", "kind", "side"),
    [
        ("timm:test_resnet", "layer4", "nchw", 2),
        ("timm:test_vit", "blocks.5.norm1", "tokens", 10),
        ("timm:test_efficientnet", "bn2", "nchw", 2),
        pytest.param("timm:vit_tiny_patch16_224", "blocks.11.norm1", "tokens", 4, marks=pytest.mark.slow),
        pytest.param("timm:deit_tiny_distilled_patch16_224", "blocks.11.norm1", "tokens", 4, marks=pytest.mark.slow),
        pytest.param("timm:beit_base_patch16_224", "norm", "tokens", 4, marks=pytest.mark.slow),
        pytest.param("timm:mixer_s32_224", "norm", "tokens", 2, marks=pytest.mark.slow),
        pytest.param("timm:swin_tiny_patch4_window7_224", "norm", "nhwc", 2, marks=pytest.mark.slow),
        pytest.param("timm:convnext_atto", "norm_pre", "nchw", 2, marks=pytest.mark.slow),
        pytest.param(
            "torchvision:vit_b_16", "encoder.layers.encoder_layer_11.ln_1", "tokens", 4, marks=pytest.mark.slow
        ),
    ],
)
def test_the_last_layer_whose_positions_matter(name, expected, kind, side):
    network = network_of(name)
    image = torch.rand(1, 3, 160, 160) if name == "timm:test_vit" else IMAGE
    found = last_positions(network, image)
    assert found.module is network.get_submodule(expected)
    assert (found.kind, found.side) == (kind, side)
    output = torch.rand({"nchw": (1, 5, side, side), "nhwc": (1, side, side, 5), "tokens": (1, side**2 + 1, 5)}[kind])
    assert found.to_map(output).shape == (1, 5, side, side)
    assert torch.equal(found.from_map(found.to_map(output), output), output)


def test_a_network_may_have_no_positions():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 3))
    assert last_positions(network, IMAGE) is None
