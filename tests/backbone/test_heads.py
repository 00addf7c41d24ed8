import pytest
import timm
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blockwise import fine_tuned, load_backbone, make_partition, train_scopes
from blockwise.backbone.heads import HEAD
from blockwise.backbone.layers import record_layers
from blockwise.backbone.partition import partition_network, split_head
from blockwise.backbone.stages import pooled, stage_backbone
from blockwise.commands.inspection import inspect_model, print_inspection
from blockwise.errors import InputError
from blockwise.partition import EvenPartitioner
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import parse_scopes

KINDS = ("linear", "mlp", "own")


class WithOwnHead(nn.Module):
    """A network with a linear layer and a norm between its features and its classifier, as VGG has."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 3, stride=2)
        self.fc, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, images):
        features = torch.relu(self.b(torch.relu(self.a(images)))).mean((2, 3))
        return torch.relu(self.norm(self.fc(features)))


@pytest.fixture
def images():
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def staged(head):
    torch.manual_seed(0)
    network = WithOwnHead().eval()
    layers = record_layers(network, torch.zeros(1, 3, 16, 16))
    partition = partition_network(EvenPartitioner(2), layers, network, head)
    return stage_backbone(network, partition, torch.randn(2, 3, 16, 16)), network


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet18", []),
        ("test_vit", []),
        ("vgg11", ["pre_logits.fc1", "pre_logits.fc2"]),
        ("mobilenetv3_small_050", ["conv_head"]),
        ("mobilenetv2_050", []),
    ],
)
def test_what_is_the_architectures_own_head(name, own):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0).eval()
        size = network.default_cfg["input_size"][-1]
        layers = record_layers(network, torch.zeros(1, 3, size, size))
    assert [layer.name for layer in layers[split_head(layers) :] if layer.kind == "weighted"] == own


def test_layers_of_an_own_head_are_in_no_block_and_have_new_weights(images):
    backbone, network = staged("own")
    assert [layer.name for layer in backbone.partition.layers if layer.parameters] == ["a", "b"]
    cell = CellNetwork(backbone, parse_scopes("head", 2, "x")[0], 3, head="own")
    own = dict(cell.head.named_parameters())
    assert set(own) == {
        "body.fc.weight",
        "body.fc.bias",
        "body.norm.weight",
        "body.norm.bias",
        "last.weight",
        "last.bias",
    }
    assert not torch.equal(own["body.fc.weight"], network.fc.weight)
    assert torch.equal(own["body.norm.weight"], torch.ones(8))
    assert all(parameter.requires_grad for parameter in own.values())
    again = CellNetwork(backbone, parse_scopes(1, 2, "x")[0], 3, head="own")
    assert all(torch.equal(a, b) for a, b in zip(own.values(), again.head.parameters(), strict=True))


def test_with_its_old_weights_an_own_head_computes_what_the_network_does(images):
    backbone, network = staged("own")
    cell = CellNetwork(backbone, parse_scopes(0, 2, "x")[0], 3, head="own").eval()
    cell.head.body.load_state_dict(backbone.own_head.state_dict())
    _, activations = next(backbone.boundaries(images, {0}))
    with torch.no_grad():
        expected = cell.head.last(network(images))
        assert torch.allclose(cell(backbone, activations), expected, atol=1e-6)


def test_the_names_of_a_head_are_not_those_of_a_network():
    assert HEAD.fullmatch("head.weight")
    assert HEAD.fullmatch("head.last.bias")
    assert HEAD.fullmatch("head.body.pre_logits.fc1.weight")
    assert not HEAD.fullmatch("head.norm.weight")  # ConvNeXt
    assert not HEAD.fullmatch("head.fc.weight")


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_with_any_head_trains_is_recorded_and_can_be_loaded(kind, images, tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone(WithOwnHead(), name="own", image_size=16, head=kind)
    partition = make_partition(backbone, "even", num_blocks=2)
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=6)
    options = {"max_epochs": 2, "accelerator": "cpu", "quiet": True, "results_dir": tmp_path, "lr": 0.01}
    data = {"train": loader, "val": loader, "test": loader}
    record, head = train_scopes(backbone, partition, ["0", "head"], data, classes=["a", "b"], **options)
    network = fine_tuned(backbone, record)
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == torch.arange(12) % 2).float().mean()
    assert accuracy == pytest.approx(record.metrics.test["top1"])
    assert ("head" in record.settings["model"]) == (kind != "linear")
    widths = {"linear": 8 * 2 + 2, "mlp": 8 * 8 + 8 + 8 * 2 + 2, "own": 6 * 8 + 8 + 16 + 8 * 2 + 2}
    assert head.cell.trainable_parameters == widths[kind]


def test_an_own_head_needs_a_network_that_can_be_cut(images, tmp_path):
    class Untraceable(WithOwnHead):
        def forward(self, images):
            return super().forward(images) + len(images)  # a trace is for one batch size

    backbone = load_backbone(Untraceable(), name="own", image_size=16, head="own")
    partition = make_partition(backbone, "even", num_blocks=2)
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=6)
    with pytest.raises(InputError, match="model.head=own: own cannot be cut in front of its head"):
        train_scopes(
            backbone,
            partition,
            "head",
            {"train": loader, "val": loader, "test": loader},
            classes=["a", "b"],
            accelerator="cpu",
            results_dir=tmp_path,
            quiet=True,
        )


def test_networks_with_two_classifiers_yield_one_feature_vector():
    name = "timm:deit_tiny_distilled_patch16_224"
    backbone = load_backbone(name, pretrained=False, image_size=32)
    assert backbone.network(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    found = inspect_model(name, ["data.image_size=32"])
    assert found["head"] == {"kind": "linear", "features": 192, "replaces": ["head", "head_dist"], "own_layers": []}


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("torchvision:vit_b_16", ["heads.head"]),
        ("torchvision:googlenet", ["fc", "aux1", "aux2"]),
        ("torchvision:regnet_x_400mf", ["fc"]),
        ("resnet18", ["fc"]),
    ],
)
def test_inspect_names_the_classifiers_that_are_replaced(name, replaced):
    assert inspect_model(name, [])["head"]["replaces"] == replaced


def test_features_that_are_not_pooled_are_pooled():
    assert pooled(torch.ones(2, 5, 3, 3)).shape == (2, 5)  # a map
    assert pooled(torch.ones(2, 7, 5)).shape == (2, 5)  # tokens
    assert pooled(torch.ones(2, 5)).shape == (2, 5)


def test_inspect_names_what_belongs_to_the_head(capsys):
    found = inspect_model("mobilenet_v3", ["model.head=own"])
    assert (found["head"]["kind"], found["head"]["own_layers"]) == ("own", ["conv_head"])
    assert found["blocks"][-1]["last_layer"] != "conv_head"
    print_inspection(found, Console(width=100), as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "new head (own) on 1,280 features in place of classifier, and new weights for conv_head" in shown
