"""`hf-hub:` and `local-dir:`: config and weights of a repository in the local cache, or of a folder."""

import json
import os
from types import SimpleNamespace

import huggingface_hub.utils as errors
import pytest
import requests
import timm
import torch
from conftest import quick_config
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import save_file

import blockwise
from blockwise.backbone.load import describe_backbone, load_backbone, needs_download
from blockwise.backbone.makers import hub
from blockwise.commands.inspection import inspect_model
from blockwise.config.checks import check_config
from blockwise.config.compose import plain
from blockwise.errors import InputError
from blockwise.results.finished import recall_finished, run_key
from blockwise.study.run import run

COMMIT = 40 * "a"
HUB = "hf-hub:org/net.tag"
CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 7,
    "model_args": {"drop_path_rate": 0.2},
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "num_classes": 7,
        "classifier": "fc",
        "first_conv": "conv1.0",
    },
}


def network():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=7)


def model(name, *overrides):
    return quick_config(["model=timm", f"model.name={name}", *overrides]).model


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def fill(folder, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "mine")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of the hub, which is returned."""

    def refuse(*_, **__):
        raise requests.ConnectionError("Failed to resolve 'huggingface.co'")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.check_host.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def cached(offline):
    """A repository in the cache; its snapshot is returned."""
    refs = offline / "models--org--net.tag" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    return fill(refs.with_name("snapshots") / COMMIT)


def test_a_folder_is_a_backbone(folder):
    backbone = load_backbone(model(f"local-dir:{folder}"))
    assert backbone.name == "mine"
    assert same(backbone.network.state_dict(), network().state_dict())
    images = backbone.images
    assert (images.size, images.mean, images.interpolation, images.crop_pct) == (64, (0.1, 0.2, 0.3), "bilinear", 0.9)
    assert backbone.settings == {"architecture": "test_resnet", "options": {"drop_path_rate": 0.2}}
    assert backbone.weights.startswith("local-dir mine sha256:")
    assert load_backbone(model(f"local-dir:{folder}", "+model.options.drop_path_rate=0.3")).settings["options"] == {
        "drop_path_rate": 0.3
    }


def test_settings_say_what_is_in_a_folder_and_not_where_it_is(folder, tmp_path):
    first = load_backbone(model(f"local-dir:{folder}"))
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    moved = (tmp_path / "elsewhere").rename(tmp_path / "other" / "mine")
    again = load_backbone(model(f"local-dir:{moved}"))
    assert (first.name, first.weights, first.settings) == (again.name, again.weights, again.settings)
    save_file({**network().state_dict(), "fc.bias": torch.ones(7)}, moved / "model.safetensors")
    assert load_backbone(model(f"local-dir:{moved}")).weights != first.weights


def test_a_checkpoint_and_random_weights_replace_those_of_a_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "mine.safetensors")
    random = load_backbone(model(f"local-dir:{folder}", "model.pretrained=false"))
    assert random.weights == "random"
    loaded = load_backbone(model(f"local-dir:{folder}", f"model.checkpoint={tmp_path}/mine.safetensors"))
    assert loaded.weights.startswith("checkpoint mine.safetensors")
    assert same(loaded.network.state_dict(), network().state_dict())


def test_a_cached_repository_needs_no_network(cached):
    cfg = model(HUB)
    assert not needs_download(cfg)
    backbone = load_backbone(cfg)
    assert backbone.name == "org--net.tag"
    assert backbone.weights.startswith("hf-hub org/net.tag sha256:")
    assert backbone.settings["architecture"] == "test_resnet"
    assert same(backbone.network.state_dict(), network().state_dict())
    assert load_backbone(model(f"{HUB}@{COMMIT}")).weights == backbone.weights


def test_a_short_name_for_a_repository(cached):
    backbone = load_backbone(model("mine", f"model.architecture={HUB}"))
    assert backbone.name == "mine"
    assert backbone.settings["architecture"] == "test_resnet"


def test_the_python_api_and_inspect_know_both(cached, folder):
    spaced = folder.rename(folder.with_name('my "own" (net)'))
    for name in (HUB, f"timm:{HUB}", f"local-dir:{spaced}", f"timm:local-dir:{spaced}"):
        assert inspect_model(name, ["partition.num_blocks=2"])["image_size"] == 64
    assert blockwise.load_backbone(f"local-dir:{spaced}").name == "my _own_ (net)"
    assert blockwise.load_backbone(HUB, options={"drop_path_rate": 0.0}).settings["options"] == {"drop_path_rate": 0.0}


def test_a_finished_run_is_known_by_the_files_of_its_network(cached, folder):
    for name, file in ((HUB, cached), (f"local-dir:{folder}", folder)):
        cfg = plain(quick_config(["data=digits", "model=timm", f"model.name={name}"]))
        first = run_key(cfg)
        assert first is not None
        os.utime(file / "model.safetensors", (0, 0))
        assert run_key(cfg) not in (None, first)
    assert run_key(plain(quick_config(["model=timm", "model.name=hf-hub:org/other"]))) is None


def test_without_a_network_one_sentence_says_what_to_do(offline, monkeypatch):
    message = "hf-hub:org/net.tag is not on this machine, and https://huggingface.co cannot be reached .its name is not"
    with pytest.raises(InputError, match=message):
        load_backbone(model(HUB))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set.*local-dir:<folder>"):
        load_backbone(model(HUB))


def test_a_plan_needs_the_config_alone(cached):
    (cached / "model.safetensors").unlink()
    cfg = model(HUB)
    assert needs_download(cfg)
    assert load_backbone(cfg, download=False).weights == "hf-hub org/net.tag sha256:not known"
    with pytest.raises(InputError, match="could not be downloaded|is not on this machine"):
        load_backbone(cfg)


def test_a_plan_knows_the_weights_that_the_hub_has(cached, monkeypatch):
    backbone = load_backbone(model(HUB))
    digest = backbone.weights.rpartition(":")[2] + 52 * "0"
    (cached / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "check_hub", lambda: None)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: SimpleNamespace(etag=digest))
    assert load_backbone(model(HUB), download=False).weights == backbone.weights


def test_a_repository_is_downloaded_at_one_commit(offline, folder, monkeypatch):
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str((folder.rename(folder.with_name(COMMIT)) if folder.exists() else folder.with_name(COMMIT)) / file)

    monkeypatch.setattr(hub, "check_hub", lambda: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    load_backbone(model(f"{HUB}@v2"))
    assert asked[0] == ("org/net.tag", "config.json", "v2")
    (folder.with_name(COMMIT) / "model.safetensors").rename(folder.with_name("weights"))
    with pytest.raises(InputError):
        load_backbone(model(f"{HUB}@v2"))
    assert asked[-1] == ("org/net.tag", "model.safetensors", COMMIT)


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.RepositoryNotFoundError("404\nlong", response=RESPONSE),
            "is not on https://.*, or it is private",
        ),
        (errors.GatedRepoError("403", response=RESPONSE), "is gated: ask for access"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "has no such revision"),
        (errors.EntryNotFoundError("404"), "the repository has no config.json"),
        (errors.LocalEntryNotFoundError("the connection\nbroke"), "cannot be downloaded .the connection broke"),
        (OSError("disk\nfull"), "cannot be downloaded .disk full"),
    ],
)
def test_a_hub_that_refuses(offline, monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub, "check_hub", lambda: None)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=f"{HUB} {message}|{HUB} is not a network of timm: {message}") as found:
        load_backbone(model(HUB))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:", "names no repository"),
        ("hf-hub:resnet18", "names no repository"),
        ("hf-hub:a/b/c", "names no repository"),
        ("hf-hub:../b", "names no repository"),
        ("hf-hub:a/b@", "names no repository"),
        (f"hf-hub:a/{200 * 'b'}", "names no repository"),
        ("local-dir:", "names no folder"),
        ("hub:a/b", "is unknown: write a name, hf-hub"),
        ("a/b", "must be a name"),
    ],
)
def test_names_are_checked_first(name, message):
    with pytest.raises(InputError, match=message):
        check_config(plain(quick_config(["model=timm", f"model.name={name}"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename(f.with_name("gone")), "is not a folder"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is damaged: it is not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "is damaged: it is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "names the architecture None"),
        (lambda f: fill(f, {**CONFIG, "architecture": "test_resnt"}), "Did you mean 'test_resnet'"),
        (lambda f: fill(f, {**CONFIG, "pretrained_cfg": 3}), "is damaged"),
        (lambda f: fill(f, {**CONFIG, "pretrained_cfg": {"mean": [1]}}), "is damaged .ValueError: mean"),
        (lambda f: fill(f, {**CONFIG, "pretrained_cfg": {"std": "abc"}}), "is damaged"),
        (lambda f: fill(f, {**CONFIG, "pretrained_cfg": {"input_size": [1, 8, 8]}}), "images of 1 channels"),
        (lambda f: fill(f, {**CONFIG, "model_args": {"checkpoint_path": "x"}}), "model_args.checkpoint_path"),
        (lambda f: fill(f, {**CONFIG, "model_args": [1]}), "is damaged"),
        (lambda f: fill(f, {**CONFIG, "model_args": {"foo": 1}}), "local-dir:.* cannot be made .*'foo'"),
        (lambda f: fill(f, {**CONFIG, "architecture": "test_vit"}), "another architecture"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights: the folder needs a model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"damaged"), "model.safetensors cannot be read as weights"),
        (
            lambda f: save_file({**network().state_dict(), "fc.bias": torch.ones(7) / 0}, f / "model.safetensors"),
            "are damaged: they contain values other than finite numbers",
        ),
    ],
)
def test_damaged_folders_are_one_sentence(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message) as found:
        load_backbone(model(f"local-dir:{folder}"))
    assert "\n" not in str(found.value)


def test_networks_are_described_without_weights(folder):
    described, example = describe_backbone(model(f"local-dir:{folder}"), 32)
    assert example.shape == (1, 3, 32, 32)
    assert described(example).ndim == 2


def test_a_run_names_its_records_after_the_folder(folder, tmp_path):
    sizes = ["data.train_per_class=3", "data.val_per_class=1", "data.test_per_class=1"]
    options = [*sizes, "data.image_size=32", "data.batch_size=4", "trainer=cpu", "trainer.max_epochs=1"]
    options += ["block=head", "optimizer.lr=0.001", "data=digits", "cache.folder=null", "partition.num_blocks=2"]
    options += [f"results_dir={tmp_path}/results"]
    cfg = quick_config(["model=timm", f"model.name=local-dir:{folder}", *options])
    (record,) = run(cfg, Console(quiet=True))
    assert record.backbone.name == "mine"
    assert record.settings["model"]["architecture"] == "test_resnet"
    assert record.settings["model"]["options"] == {"drop_path_rate": 0.2}
    assert len(list(tmp_path.glob("results/digits/mine/*/head/*/record.json"))) == 1
    assert recall_finished(plain(cfg)) is not None
