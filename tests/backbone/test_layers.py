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
