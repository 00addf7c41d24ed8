import pytest
import timm
import torch
from torch import nn
from torchvision.models import densenet121

from blockwise.backbone.layers import is_leaf, record_layers


def test_functions_and_modules_are_recorded_in_order(stub_layers):
    assert [(layer.type, layer.kind) for layer in stub_layers] == [
        ("Conv2d", "weighted"),
        ("BatchNorm2d", "norm"),
        ("ReLU", "activation"),
        ("Conv2d", "weighted"),
        ("BatchNorm2d", "norm"),
        ("relu", "activation"),
        ("Conv2d", "weighted"),
        ("BatchNorm2d", "norm"),
        ("relu", "activation"),
        ("max_pool2d", "pool"),
        ("Conv2d", "weighted"),
        ("GroupNorm", "norm"),
        ("relu", "activation"),
        ("Dropout", "other"),
        ("Linear", "weighted"),
        ("tanh", "activation"),
    ]
    assert [layer.index for layer in stub_layers] == list(range(len(stub_layers)))


def test_every_parameter_belongs_to_one_layer(stub, stub_layers):
    owned = [name for layer in stub_layers for name in layer.parameters]
    assert sorted(owned) == sorted(name for name, _ in stub.named_parameters())
    assert sum(layer.num_parameters for layer in stub_layers) == sum(p.numel() for p in stub.parameters())


def test_a_parameter_outside_any_layer_goes_with_the_weighted_layer_before(stub_layers):
    (owner,) = (layer for layer in stub_layers if "scale" in layer.parameters)
    assert owner.name == "conv2"
    assert stub_layers[owner.index + 1].joined


def test_norms_stay_with_their_convolution(stub_layers):
    assert all(layer.joined for layer in stub_layers if layer.kind == "norm")


def test_flops_and_sizes(stub_layers):
    stem = stub_layers[0]
    assert stem.output_size == (8, 8, 8)
    assert stem.flops == 2 * 3 * 9 * 8 * 8 * 8  # a multiply-add counts two
    linear = next(layer for layer in stub_layers if layer.type == "Linear")
    assert linear.flops == 2 * 16 * 12


def test_recording_leaves_the_network_as_it_was(stub):
    stub.train()
    stub.conv1.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in stub.state_dict().items()}
    record_layers(stub, torch.randn(1, 3, 16, 16))
    assert all(module.training for module in stub.modules())
    assert not stub.conv1.weight.requires_grad
    assert stub.conv2.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in stub.state_dict().items())
    assert not stub.conv1._forward_hooks


def test_works_on_the_meta_device():
    with torch.device("meta"):
        network = timm.create_model("test_vit", num_classes=0)
        layers = record_layers(network, torch.zeros(1, 3, 160, 160))
    owned = {name for layer in layers for name in layer.parameters}
    assert {"cls_token", "pos_embed"} & owned == {
        n for n in ("cls_token", "pos_embed") if n in dict(network.named_parameters())
    }
    assert layers[0].flops > 0


def test_torchvision_functions_are_separators():
    layers = record_layers(densenet121(weights=None), torch.zeros(1, 3, 64, 64))
    assert any(layer.type == "relu" and layer.kind == "activation" for layer in layers)
    assert any(layer.type == "adaptive_avg_pool2d" and layer.kind == "pool" for layer in layers)


def test_fused_norm_and_activation_is_one_layer_that_activates():
    layers = record_layers(timm.create_model("tf_efficientnet_lite0"), torch.zeros(1, 3, 64, 64))
    fused = [layer for layer in layers if layer.type == "BatchNormAct2d"]
    assert fused
    assert all(layer.kind == "norm" for layer in fused)
    assert any(layer.activates for layer in fused)
    assert not all(layer.activates for layer in fused)  # a projection has no activation


def test_a_weight_that_is_used_twice_joins_its_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    layers = record_layers(Twice(), torch.zeros(1, 4))
    assert [layer.joined for layer in layers] == [False, True, True]
    assert [len(layer.parameters) for layer in layers] == [2, 2, 0]


def test_containers_are_no_layers():
    assert not is_leaf(nn.Sequential())
    assert is_leaf(nn.MultiheadAttention(4, 2))


def recorded(network, size=8):
    return record_layers(network.eval(), torch.zeros(1, 3, size, size))


def meta(name, **options):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0, **options)
        size = network.default_cfg["input_size"][-1]
        return network, record_layers(network, torch.zeros(1, 3, size, size))


def block_starts(layers):
    return [layer.name for layer in layers if layer.kind in ("weighted", "norm", "scale") and not layer.joined]


class PreNorm(nn.Module):
    """A residual branch that begins with its norm and ends with a scale, and a norm at the end of the network."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.norm, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.gamma, self.last = nn.Parameter(torch.ones(4, 1, 1)), nn.BatchNorm2d(4)
        self.q_bias, self.token = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 4, 8, 1))

    def forward(self, x):
        x = torch.cat([self.stem_norm(self.stem(x)), self.token.expand(len(x), -1, -1, -1)], dim=3)
        bias = torch.cat([self.q_bias, torch.zeros(2)])
        branch = torch.conv2d(torch.relu(self.norm(x)), self.a.weight, bias) + self.a.bias[:, None, None]
        return self.last(x + self.gamma * self.b(branch)).mean((2, 3))


def test_a_norm_goes_with_the_layer_that_it_normalises_for():
    layers = recorded(PreNorm())
    assert block_starts(layers) == ["stem", "norm", "b"]  # the last norm follows the branch
    assert [layer.name for layer in layers if layer.joined] == ["stem_norm", "relu", "a", "last"]


def test_parameters_outside_of_layers_go_with_what_reads_them_or_with_what_they_follow():
    owner = {name: layer.name for layer in recorded(PreNorm()) for name in layer.parameters}
    assert owner["q_bias"] == "a"  # its own layer, although it is read before it
    assert owner["token"] == "stem"
    assert owner["gamma"] == "b"


def test_where_the_residual_stream_is_whole():
    layers = {layer.name: layer for layer in recorded(PreNorm())}
    assert {name: layers[name].beside for name in ("stem", "norm", "a", "b", "last")} == {
        "stem": 0,
        "norm": 0,
        "a": 1,
        "b": 1,
        "last": 0,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vit", ["blocks.1.norm1", "blocks.1.attn.proj", "blocks.1.norm2", "blocks.1.mlp.fc2"]),
        ("test_convnext", ["stages.1.blocks.0.conv_dw", "stages.1.blocks.0.mlp.fc1", "stages.1.blocks.0.mlp.fc2"]),
        ("resnetv2_18", ["stages.1.blocks.1.norm1", "stages.1.blocks.1.conv2"]),
        ("densenet121", ["features.denseblock2.denselayer2.norm1", "features.denseblock2.denselayer2.conv2"]),
    ],
)
def test_norms_of_known_architectures(name, expected):
    _, layers = meta(name)
    prefix = expected[0].rpartition(".")[0]
    assert [start for start in block_starts(layers) if start.startswith(f"{prefix}.")] == expected


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2"])
def test_every_parameter_of_a_transformer_block_is_in_that_block(name):
    network, layers = meta(name)
    owner = {parameter: layer.name for layer in layers for parameter in layer.parameters}
    for parameter, layer in owner.items():
        if parameter.startswith("blocks."):
            assert layer.split(".")[:2] == parameter.split(".")[:2]
    scales = [layer for layer in layers if layer.kind == "scale"]
    assert all(layer.joined and layer.flops == 0 for layer in scales)
    assert len(scales) == (24 if "dinov2" in name else 0)
    assert {n for n, _ in network.named_parameters()} >= set(owner)


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("resnet18", 0),
        ("vgg11", 0),  # the activations between its last linear layers are in no residual branch
        ("mobilenetv2_050", 0),
        pytest.param("inception_v3", 0, marks=pytest.mark.slow),
        pytest.param("densenet121", 0, marks=pytest.mark.slow),
        ("test_vit", 6),
        ("test_convnext", 9),
        ("mobilenetv3_small_050", 9),  # one per squeeze-and-excitation
    ],
)
def test_activations_within_squeeze_excite_attention_and_mlps(name, inner):
    _, layers = meta(name)
    assert sum(layer.inner for layer in layers) == inner


def test_what_the_first_versions_had_elsewhere_is_marked():
    for name in ("resnet18", "vgg11", "tf_efficientnet_lite0"):
        assert not any(layer.revised for layer in meta(name)[1])
    for name in ("resnetv2_18", "test_vit"):
        assert any(layer.revised for layer in meta(name)[1])


def test_asking_for_a_size_needs_no_value():
    class AsksForSizes(PreNorm):
        def forward(self, x):
            return super().forward(x) * len(x) * x.size(0) * x.dim() * x.shape[0]

    assert not any(layer.beside for layer in recorded(AsksForSizes()) if layer.name in ("stem", "norm"))
