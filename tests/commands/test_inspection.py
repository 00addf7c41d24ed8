import json

import pytest
from rich.console import Console

from blockwise.commands.inspection import inspect_model, print_inspection
from blockwise.errors import InputError


def test_blocks_add_up_to_the_model():
    found = inspect_model("resnet50", [])
    assert found["num_blocks"] == 12
    assert found["parameters"] == 23_508_032  # ResNet-50 without its classifier
    assert sum(block["parameters"] for block in found["blocks"]) == found["parameters"]
    assert sum(block["flops"] for block in found["blocks"]) == found["flops"]
    assert found["flops"] == pytest.approx(8.18e9, rel=0.01)  # 4.09 GMACs (He et al., 2016, 4.1)
    assert found["blocks"][0]["layers"][0] == 0
    assert found["blocks"][0]["first_layer"] == "conv1"
    assert found["blocks"][-1]["output_size"] == [2048]
    assert [block["quarter"] for block in found["blocks"]] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("model", "overrides", "blocks"),
    [
        ("vgg16", ["partition=layer"], 15),
        ("resnet18", ["partition=stage"], 5),
        ("resnet18.a1_in1k", ["partition.num_blocks=4", "data.image_size=64"], 4),
        ("torchvision:resnet18", ["partition=window", "partition.length=5", "partition.stride=5"], 4),
        ("vit_b_16", ["partition=even"], 12),
        ("vgg11", [], 10),  # has fewer segments than the default number of blocks
    ],
)
def test_any_model_and_any_partition(model, overrides, blocks):
    assert inspect_model(model, overrides)["num_blocks"] == blocks


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("resnet81", [], "there is no model resnet81.*Did you mean 'resnet"),
        pytest.param("mobilenetv5_300m_enc", [], "is not a classifier", marks=pytest.mark.slow),
        (
            "vgg11",
            ["partition.num_blocks=12"],
            "the backbone has 10 segments, so choose 1 to 10, or null",
        ),
        ("vgg16", ["partition=windw"], "Did you mean 'window'"),
        ("torchvision:vgg61", [], "there is no model"),
    ],
)
def test_what_cannot_be_inspected(model, overrides, message):
    with pytest.raises(InputError, match=message):
        inspect_model(model, overrides)


def test_json_and_table(capsys):
    found = inspect_model("vgg16", ["partition.num_blocks=3"])
    print_inspection(found, Console(), as_json=True)
    assert json.loads(capsys.readouterr().out) == found
    print_inspection(found, Console(width=120), as_json=False)
    out = capsys.readouterr().out
    assert "vgg16 at 224 px, partition segment: 3 blocks" in out
    assert "features.0" in out
