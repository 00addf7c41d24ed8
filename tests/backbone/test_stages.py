import pytest
import timm
import torch
from conftest import quick_config
from torch import nn

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import load_backbone
from blockwise.backbone.stages import CannotStageError, stage_backbone, whole_backbone
from blockwise.config.compose import options
from blockwise.partition import (
    EvenPartitioner,
    LayerPartitioner,
    SegmentPartitioner,
    UnitPartitioner,
    WindowPartitioner,
)


def staged(network, partitioner, size, batch=2):
    network.eval().requires_grad_(requires_grad=False)
    partition = partitioner(record_layers(network, torch.zeros(1, 3, size, size)), network)
    return stage_backbone(network, partition, torch.randn(batch, 3, size, size))


@pytest.mark.parametrize("partitioner", [LayerPartitioner(), EvenPartitioner(3), WindowPartitioner(2, 1)])
def test_stages_compute_what_the_network_does(stub, partitioner):
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = stub.eval()(images)
        backbone = staged(stub, partitioner, 16)
        live = backbone.enter(images)
        for stage, module in enumerate(backbone.stages):
            live = backbone.run(stage, live, module)
        assert torch.equal(backbone.features(live), expected)
        assert torch.allclose(backbone(images), expected, atol=1e-6)  # batch norms folded away
    assert backbone.num_features == 12


def test_running_from_every_boundary_gives_the_same(stub):
    backbone = staged(stub, LayerPartitioner(), 16)
    images = torch.randn(3, 3, 16, 16)
    expected = backbone(images)
    boundaries = dict(backbone.boundaries(images, set(range(len(backbone) + 1))))
    for start, live in boundaries.items():
        for stage in range(start, len(backbone)):
            live = backbone.run(stage, live)
        assert torch.equal(backbone.features(live), expected)


def test_only_what_is_needed_stays_alive(stub):
    backbone = staged(stub, LayerPartitioner(), 16)
    live = dict(backbone.boundaries(torch.randn(2, 3, 16, 16), {0, 1, 2, 3}))
    assert [len(live[boundary]) for boundary in range(4)] == [1, 1, 2, 1]  # a residual is alive at boundary 2


def test_the_prefix_runs_no_further_than_wanted(stub):
    backbone = staged(stub, LayerPartitioner(), 16)
    ran = []
    for index, stage in enumerate(backbone.frozen):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))
    list(backbone.boundaries(torch.randn(2, 3, 16, 16), {0, 2}))
    assert ran == [0, 1]


def test_every_parameter_is_in_the_stage_of_its_block(stub):
    names = {name for name, _ in stub.named_parameters()}
    backbone = staged(stub, LayerPartitioner(), 16)
    for index, stage in enumerate(backbone.stages):
        block = {name for layer in backbone.partition.layers_of(index) for name in layer.parameters}
        assert {name for name, _ in stage.named_parameters()} == block
        names -= block
    assert not names


def test_stages_overwrite_nothing_in_place(stub):
    backbone = staged(stub, LayerPartitioner(), 16)
    for boundary, live in backbone.boundaries(torch.randn(2, 3, 16, 16), set(range(len(backbone)))):
        before = {name: value.clone() for name, value in live.items()}
        backbone.run(boundary, live)
        assert all(torch.equal(value, before[name]) for name, value in live.items())


def test_shared_stages_stay_frozen_and_in_inference_mode(stub):
    backbone = staged(stub, EvenPartitioner(2), 16)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_byobnet", "test_mambaout", "test_nfnet"],
)
def test_tiny_relatives_of_real_families(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0)
    size = network.default_cfg["input_size"][-1]
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = network.eval()(images)
        backbone = staged(network, EvenPartitioner(4), size)
        assert torch.allclose(backbone(images), expected, rtol=1e-5, atol=1e-6)
    assert not backbone.whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    (
        "vgg11 resnet50 resnetv2_50 inception_v3 legacy_xception mobilenetv3_large_100 densenet121 "
        "swin_tiny_patch4_window7_224 convnext_atto beit_base_patch16_224 cait_xxs24_224 maxvit_tiny_rw_224"
    ).split(),
)
def test_real_architectures(name):
    network = timm.create_model(name, num_classes=0)
    size = network.default_cfg["input_size"][-1]
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = network.eval()(images)
        backbone = staged(network, UnitPartitioner(8), size)
        assert (backbone(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not backbone.whole


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in options("model") if name not in ("timm", "torchvision")])
def test_every_named_backbone_can_be_cut(name):
    model = quick_config([f"model={name}", "model.pretrained=false"]).model
    backbone = staged(load_backbone(model, image_size=96).network, SegmentPartitioner(), 96)
    assert len(backbone) == 12
    assert not backbone.whole


class Untraceable(nn.Module):
    """Branches on values instead of shapes, so a trace is valid for one batch size only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(x).mean((2, 3)) * float(len(x))


def test_a_graph_with_the_batch_size_baked_in_is_refused():
    with pytest.raises(CannotStageError, match="give different outputs"):
        staged(Untraceable(), LayerPartitioner(), 8)


def test_a_network_that_cannot_be_cut_is_one_stage(stub, stub_layers):
    partition = LayerPartitioner()(stub_layers, stub)
    example = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = stub.eval()(example)
    backbone = whole_backbone(stub.eval(), partition, example)
    assert backbone.whole
    assert len(backbone) == 1
    assert torch.equal(backbone(example), expected)


class Attending(nn.Module):
    """A leaf with inner layers, which the frozen stages share with the network."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 4, 4), nn.ReLU()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, images):
        x = self.act(self.conv(images)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.fc(self.layer(x).mean(1))


@pytest.mark.parametrize("kind", ["stub", "attending"])
def test_frozen_weights_stored_in_bfloat16_compute_what_autocast_does(stub, kind):
    network = stub if kind == "stub" else Attending()
    backbone = staged(network, LayerPartitioner(), 16)
    images = torch.randn(3, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in backbone.stages.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = backbone(images)
        backbone.freeze(torch.bfloat16)
        assert torch.equal(backbone(images), expected)
    assert {p.dtype for p in backbone.frozen.parameters()} >= {torch.bfloat16}
    assert all(
        torch.equal(t, before[name]) and t.dtype == before[name].dtype
        for name, t in backbone.stages.state_dict().items()
    )
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


class Amplifies(nn.Module):
    """Amplifies rounding: the folded norm and the original one agree in double precision only."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)

    def forward(self, images):
        values = self.norm(self.conv(images))
        return self.last((values - values.mean((0, 2, 3), keepdim=True)) * 1e4).mean((2, 3))


def test_rounding_is_no_reason_to_refuse_a_network():
    torch.manual_seed(0)
    network = Amplifies()
    network.norm.bias.data.fill_(1e5)
    backbone = staged(network, LayerPartitioner(), 16)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        difference = (backbone(images) - network(images)).abs().max() / network(images).abs().max()
    assert difference > 1e-4
    assert not backbone.whole


def test_constants_of_any_rank_can_be_channels_last():
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=64, window_size=2, depths=(2, 2, 2, 2)
    )
    backbone = staged(network, UnitPartitioner(), 64).to(memory_format=torch.channels_last)
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, 768)


class ComputesBeforehand(nn.Module):
    """Computes with parameters of its second layer before the first one runs, as attention biases are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.table, self.bias = nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(5))

    def forward(self, images):
        bias = torch.sigmoid(self.bias)
        values = self.first(images)
        positions = self.table[torch.arange(values.shape[-1])]  # depends on a shape, not on the images
        values = nn.functional.conv2d(torch.relu(values), self.second.weight, self.second.bias + bias)
        return (values * positions[:1]).mean((2, 3))


def test_what_is_computed_from_parameters_is_in_the_stage_that_uses_it():
    torch.manual_seed(0)
    network, images = ComputesBeforehand(), torch.randn(3, 3, 8, 8)
    backbone = staged(network, LayerPartitioner(), 8)
    first, second = ({name for name, _ in stage.named_parameters()} for stage in backbone.stages)
    assert first == {"first.weight", "first.bias"}
    assert second == {"second.weight", "second.bias", "table", "bias"}
    owned = {name for layer in backbone.partition.layers_of(1) for name in layer.parameters}
    assert owned == second
    stage = backbone.stages[1].requires_grad_()
    _, activations = next(backbone.boundaries(images, {1}))
    sum(value.sum() for value in backbone.run(1, activations, stage).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stage.parameters())
