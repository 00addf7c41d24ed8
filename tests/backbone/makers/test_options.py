"""`model.options` reach the builder; what it refuses, and what blockwise sets itself, is one sentence."""

import pytest
import requests
import timm
import torch
import torchvision
from conftest import quick_config
from safetensors.torch import save_file

import blockwise
from blockwise.backbone.load import image_spec, load_backbone
from blockwise.backbone.makers import hub
from blockwise.config.checks import check_config
from blockwise.config.compose import plain
from blockwise.errors import InputError

TIMM = ["model=timm", "model.name=test_resnet", "model.pretrained=false"]
TORCHVISION = ["model=torchvision", "model.name=squeezenet1_1", "model.pretrained=false"]


def model(*overrides):
    return quick_config(list(overrides)).model


@pytest.mark.parametrize("option", ["model.options={drop_path_rate: 0.1}", "+model.options.drop_path_rate=0.1"])
def test_options_reach_timm(option):
    backbone = load_backbone(model(*TIMM, option))
    assert backbone.settings == {"options": {"drop_path_rate": 0.1}}
    assert any(type(module).__name__ == "DropPath" for module in backbone.network.modules())


def test_options_reach_torchvision():
    backbone = load_backbone(model(*TORCHVISION, "model.options={dropout: 0.25}"))
    assert [m.p for m in backbone.network.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]


@pytest.mark.parametrize("option", ["model.options={}", "model.options=null", "model.options={drop_path_rate: null}"])
def test_no_options_leave_the_settings_as_they_are(option):
    assert load_backbone(model(*TIMM, option)).settings == {}


def test_options_of_the_python_api():
    options = {"drop_path_rate": 0.1, "act_layer": torch.nn.SiLU}
    backbone = blockwise.load_backbone("timm:test_resnet", pretrained=False, options=options)
    assert backbone.settings == {"options": options}
    assert any(isinstance(module, torch.nn.SiLU) for module in backbone.network.modules())
    for wrong, message in (({"num_classes": 3}, "options.num_classes=3"), (3, "options=3"), ({None: 3}, "'None'")):
        with pytest.raises(InputError, match=message):
            blockwise.load_backbone("timm:test_resnet", options=wrong)
    with pytest.raises(InputError, match="set those of your own"):
        blockwise.load_backbone(torch.nn.Flatten(), name="own", image_size=8, options={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("3", "model.options=3 must be names and values"),
        ("[1]", "must be names and values"),
        ("{null: 3}", "must be names and values"),
        ("{3: 3}", "has the name '3': options are names of arguments"),
        ("{a-b: 3}", "has the name 'a-b'"),
        ("{num_classes: 10}", "model.options.num_classes=10 is not for you to set: blockwise makes the head"),
        ("{pretrained: true}", "model.options.pretrained=True is not for you to set: use model.pretrained"),
        ("{in_chans: 1}", "model.options.in_chans=1 is not for you to set: images have 3 channels"),
        ("{features_only: true}", "model.options.features_only"),
        ("{checkpoint_path: x}", "use model.checkpoint"),
        ("{weights: DEFAULT}", "use model.pretrained and model.weights"),
        ("{img_size: 32}", "use data.image_size"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(InputError, match=message):
        check_config(plain(quick_config([*TIMM, f"model.options={options}"])))


def test_hydras_plus():
    with pytest.raises(InputError, match=r"write \+model.options.drop_path_rate=<value>"):
        model(*TIMM, "model.options.drop_path_rate=0.1")
    assert model("+model.options={a: 1}").options == {"a": 1}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=timm", "model.name=test_vit", "model.options={attn_drop_rate: 0.5}"],
        ["model=torchvision", "model.name=densenet121", "model.options={drop_rate: 0.5}", "model.input_size=64"],
    ],
)
def test_dropout_that_would_never_be_switched_on_is_refused(overrides):
    with pytest.raises(InputError, match="_rate=0.5: .* drops values by a function, not by a layer"):
        load_backbone(model(*overrides, "model.pretrained=false"))


@pytest.fixture
def no_web(monkeypatch, tmp_path):
    """Nothing is on this machine, and asking for it fails the test."""

    def refuse(*_, **__):
        raise AssertionError("the web was asked")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*TIMM, "model.options={drop_path: 1}"],
            "drop_path is unknown: test_resnet has no such argument",
        ),
        ([*TIMM, "model.options={drop_path_rat: 1}"], "Did you mean 'drop_path_rate'"),
        ([*TIMM, "model.options={drop_rate: 0.1, act_layer: 3}"], "model.options.act_layer=3 does not fit test_resnet"),
        (
            [*TORCHVISION, "model.options={drop: 1}"],
            "drop is unknown: squeezenet1_1 has no such argument",
        ),
        ([*TORCHVISION, "model.options={dropout: 7}"], "model.options.dropout=7 does not fit squeezenet1_1"),
    ],
)
def test_refused_options_are_named_before_a_download(no_web, overrides, message):
    cfg = model(*overrides, "model.pretrained=true")
    for check in (image_spec, load_backbone):  # the former comes before the data
        with pytest.raises(InputError, match=message) as found:
            check(cfg)
        assert "\n" not in str(found.value)


def test_options_that_change_the_shapes_of_pretrained_weights(monkeypatch, tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, file: str(tmp_path / file))
    cfg = model("model=timm", "model.name=test_resnet", "model.options={stem_width: 24}")
    with pytest.raises(InputError, match="wrong shape: .*model.options={'stem_width': 24}"):
        load_backbone(cfg)


def test_options_that_change_the_shapes_of_torchvisions_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    address = torchvision.models.MobileNet_V2_Weights.DEFAULT.url
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "checkpoints" / address.rpartition("/")[2])
    with pytest.raises(InputError, match="wrong shape: .*model.options={'width_mult': 0.5}"):
        load_backbone(model("model=torchvision", "model.name=mobilenet_v2", "model.options={width_mult: 0.5}"))
