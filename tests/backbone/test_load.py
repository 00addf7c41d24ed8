import pytest
import timm
import torch
import torchvision
from conftest import quick_config

from blockwise.backbone.load import describe_backbone, load_backbone
from blockwise.backbone.makers import hub
from blockwise.config.compose import options
from blockwise.errors import InputError

NAMED = [name for name in options("model") if name not in ("timm", "torchvision")]
FIFTEEN = (
    "vgg16 vgg19 resnet50 resnet101 resnet152 resnet50v2 inception_v3 inception_resnet_v2 xception "
    "mobilenet_v1 mobilenet_v2 mobilenet_v3 densenet121 densenet169 densenet201"
).split()


def model(*overrides):
    return quick_config(list(overrides)).model


def test_the_fifteen_are_there():
    assert set(FIFTEEN) <= set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_named_configs_say_what_timm_says_of_the_weights(name):
    cfg = model(f"model={name}")
    assert cfg.name == name
    theirs = timm.models.get_pretrained_cfg(cfg.architecture)
    assert theirs.has_weights
    assert cfg.architecture.split(".")[1]  # an explicit weights tag
    for key in ("mean", "std", "interpolation", "crop_pct"):
        value = getattr(theirs, key)
        assert (tuple(cfg[key]) if isinstance(value, tuple) else cfg[key]) == value
    assert (3, cfg.input_size, cfg.input_size) == theirs.input_size


# of each family the smallest often, the others with the slow tests
DEEP = {"densenet169", "densenet201", "inception_resnet_v2", "resnet101", "resnet152", "vgg19"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in NAMED]
)
def test_named_networks_yield_features(name):
    network, _ = describe_backbone(model(f"model={name}"), 96)
    with torch.no_grad():
        features = network(torch.zeros(2, 3, 96, 96, device="meta"))
    assert features.ndim == 2


@pytest.mark.parametrize(
    "name", ["resnet18", "googlenet", "squeezenet1_1", "vit_b_16", "mobilenet_v3_small", "densenet121"]
)
def test_torchvision_networks_lose_their_classifier_and_nothing_else(name):
    network, example = describe_backbone(model("model=torchvision", f"model.name={name}"))
    with torch.no_grad():
        assert network(example).ndim in (2, 4)
    assert not any("aux" in parameter for parameter, _ in network.named_parameters())


def test_networks_that_compute_while_they_are_made_are_described_on_the_cpu():
    network, example = describe_backbone(model("model=torchvision", "model.name=regnet_x_400mf"))
    assert example.device.type == "cpu"  # the meta device has no values
    assert network(example).shape == (1, 400)


def test_torchvision_says_what_images_must_look_like():
    cfg = model("model=torchvision", "model.name=efficientnet_b3", "model.pretrained=false")
    backbone = load_backbone(cfg)
    assert backbone.images.size == 300
    assert backbone.images.interpolation == "bicubic"
    assert backbone.weights == "random"


def test_fixed_size_networks_are_made_for_the_size_asked_for():
    cfg = model("model=timm", "model.name=test_vit", "model.pretrained=false")
    backbone = load_backbone(cfg, image_size=64)
    assert backbone.images.size == 64
    with torch.no_grad():
        assert backbone.network(torch.zeros(1, 3, 64, 64)).shape[0] == 1


def test_random_weights_depend_on_the_seed():
    cfg = model("model=timm", "model.name=test_resnet", "model.pretrained=false")
    first, again, other = (next(load_backbone(cfg, seed=seed).network.parameters()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_checkpoint_is_named_in_the_weights(tmp_path):
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    cfg = model("model=timm", "model.name=test_resnet", f"model.checkpoint={tmp_path / 'mine.pth'}")
    backbone = load_backbone(cfg)
    assert backbone.weights.startswith("checkpoint mine.pth sha256:")
    own = network.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in backbone.network.state_dict().items())


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_checkpoints_with_auxiliary_classifiers(tmp_path, name):
    """Trained in torchvision for another number of classes; the file contains auxiliary heads, which are ignored."""
    source = torchvision.models.get_model(name, weights=None, num_classes=7, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "mine.pth")
    cfg = model("model=torchvision", f"model.name={name}", f"model.checkpoint={tmp_path / 'mine.pth'}")
    network = load_backbone(cfg).network
    assert network.transform_input
    own = network.state_dict()
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in own.items())


def test_a_second_classifier_may_have_another_shape(tmp_path):
    torch.save(timm.create_model("levit_128s", num_classes=7).state_dict(), tmp_path / "mine.pth")
    load_backbone(model("model=timm", "model.name=levit_128s", f"model.checkpoint={tmp_path / 'mine.pth'}"))


def test_weights_name_the_tag():
    with pytest.raises(InputError, match="choose from"):
        load_backbone(model("model=timm", "model.name=resnet18", "model.weights=a9_in1k"))
    with pytest.raises(InputError, match="contradicts"):
        load_backbone(model("model=resnet50", "model.weights=a1_in1k"))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    cfg = model("model=timm", "model.name=test_resnet", f"model.checkpoint={tmp_path / 'other.pth'}")
    with pytest.raises(InputError, match="another architecture: missing: .* and .* more; unexpected"):
        load_backbone(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=timm", "model.name=resnet81"], "timm has no model named resnet81. Did you mean 'resnet"),
        (["model=timm", "model.name=resnet50.a9_in1k"], "timm has no weights 'a9_in1k' for resnet50: choose from"),
        (["model=torchvision", "model.name=resnet81"], "torchvision has no classifier named resnet81. Did you mean"),
        (["model=torchvision", "model.name=resnet50", "model.weights=V9"], "choose from IMAGENET1K_V1, IMAGENET1K_V2"),
    ],
)
def test_unknown_models_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        load_backbone(model(*overrides))


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def offline(*_, **options):
        if options.get("pretrained"):
            raise OSError("no network\nat all")
        raise AssertionError

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(hub, "check_hub", lambda: None)
    with pytest.raises(
        InputError, match=r"vgg16.tv_in1k could not be downloaded \(OSError: no network\).*model.checkpoint"
    ):
        load_backbone(model("model=vgg16"))
