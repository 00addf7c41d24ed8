"""Weights that are on this machine are not asked for on the web, and a host that cannot be reached is found quickly."""

import time

import pytest
import requests
import timm
import torch
import torchvision
from conftest import SMALL, quick_config
from processes import blockwise
from safetensors.torch import save_file

from blockwise.backbone.load import load_backbone, needs_download
from blockwise.backbone.makers import hub
from blockwise.errors import InputError

TIMM = ["model=timm", "model.name=test_resnet"]
TORCHVISION = ["model=torchvision", "model.name=squeezenet1_1"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing in the caches."""

    def refuse(*_, **__):
        raise requests.ConnectionError("Failed to resolve 'huggingface.co'")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub.check_host.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "host"), [(TIMM, "https://huggingface.co"), (TORCHVISION, "https://download.pytorch.org")]
)
def test_a_host_that_cannot_be_reached_is_named(offline, overrides, host):
    model = quick_config(overrides).model
    assert needs_download(model)
    with pytest.raises(InputError, match=f"{host} cannot be reached .its name is not known here.*model.checkpoint"):
        load_backbone(model)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    monkeypatch.setattr(requests, "head", lambda *_, **__: time.sleep(1))
    with pytest.raises(InputError, match="no answer"):
        hub.check_host("https://nowhere.example")


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_timms_weights_in_the_cache_need_no_network(offline, monkeypatch, tmp_path):
    network = timm.create_model("test_resnet").state_dict()
    save_file(network, tmp_path / "model.safetensors")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, file: str(tmp_path / file))
    model = quick_config(TIMM).model
    assert not needs_download(model)
    assert same(load_backbone(model).network.state_dict(), network)


def test_torchvisions_weights_in_the_cache_need_no_network(offline, tmp_path):
    network = torchvision.models.squeezenet1_1().state_dict()
    address = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(network, tmp_path / "checkpoints" / address.rpartition("/")[2])
    model = quick_config(TORCHVISION).model
    assert not needs_download(model)
    assert same(load_backbone(model).network.state_dict(), network)


CUT = """
import socket
def refuse(*_, **__):
    raise OSError("Name or service not known")
socket.getaddrinfo = refuse
"""
PRETRAINED = [*(o for o in SMALL if "pretrained" not in o), "partition.num_blocks=3"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param([], "https://huggingface.co cannot be reached", marks=pytest.mark.slow),
        pytest.param(["block=99"], "block=99 is out of range", marks=pytest.mark.slow),
        pytest.param(["data.batch_size=51"], "data.batch_size=51 does not fit", marks=pytest.mark.slow),
    ],
)
def test_local_checks_come_before_a_download(tmp_path, overrides, message):
    done = blockwise("train", *PRETRAINED, *overrides, folder=tmp_path, before=CUT)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_plan_downloads_nothing(tmp_path):
    done = blockwise("train", *PRETRAINED, "plan=true", folder=tmp_path, before=CUT)
    assert done.returncode == 0, done.stderr
    assert "5 cells, 0 of them already recorded" in done.stdout
