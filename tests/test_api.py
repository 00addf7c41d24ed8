"""The package from Python."""

import copy
import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import StubNetwork
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import blockwise
from blockwise import (
    BlockwiseDataModule,
    fine_tuned,
    load_backbone,
    make_partition,
    read_records,
    run_study,
    train_scopes,
)
from blockwise.data.digits import Digits
from blockwise.errors import InputError

QUICK = {"classes": "abcdefghij", "max_epochs": 2, "accelerator": "cpu", "quiet": True}


@pytest.fixture
def backbone():
    return load_backbone("timm:test_resnet", pretrained=False, image_size=32)


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(0)

    def loader(count):
        images = torch.randn(count, 3, 32, 32, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size=10)

    return {"train": loader(40), "val": loader(20), "test": loader(30)}


def test_alone_equals_among_and_the_backbone_stays_as_it_is(backbone, loaders, tmp_path):
    before = copy.deepcopy(backbone.network.state_dict())
    partition = make_partition(backbone, num_blocks=3)
    among = train_scopes(backbone, partition, "all", loaders, results_dir=tmp_path / "among", **QUICK)
    (alone,) = train_scopes(backbone, partition, 1, loaders, results_dir=tmp_path / "alone", **QUICK)
    assert [record["cell"]["scope"] for record in among] == ["head", "0", "1", "2", "full"]
    assert alone["metrics"] == among[2]["metrics"]
    weights = [load_file(f"{record['folder']}/weights.safetensors") for record in (alone, among[2])]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.network.state_dict().items())
    assert alone["data"] == {
        "name": "own",
        "classes": 10,
        "image_size": 32,
        "train": 40,
        "val": 20,
        "test": 30,
        "skipped": [],
    }


def test_a_datamodule_of_lightnings(backbone, tmp_path):
    data = BlockwiseDataModule(
        Digits(train_per_class=8, val_per_class=3, test_per_class=5), backbone.images, batch_size=16
    )
    partition = make_partition(backbone, "even", num_blocks=2)
    records = train_scopes(backbone, partition, ["head", 0], data, lr=[1e-3, 1e-2], results_dir=tmp_path, **QUICK)
    assert [(r["cell"]["scope"], r["settings"]["lr"]) for r in records] == [
        ("head", 1e-3), ("head", 1e-2), ("0", 1e-3), ("0", 1e-2)
    ]  # fmt: skip
    assert records[0]["data"]["test"] == 50


def test_a_network_of_ones_own(loaders, tmp_path):
    backbone = load_backbone(StubNetwork(), name="stub", image_size=32)
    partition = make_partition(backbone, "layer")
    (record,) = train_scopes(backbone, partition, "-1", loaders, results_dir=tmp_path, **QUICK)
    assert record["backbone"]["name"] == "stub"
    assert record["cell"]["blocks"] == [len(partition) - 1]


def test_a_study_is_what_the_command_line_does(small_overrides, tmp_path):
    frame = run_study(*small_overrides, "block=[head,2]", f"results_dir={tmp_path}")
    assert frame["scope"].tolist() == ["head", "2"]
    assert set(read_records(tmp_path)["scope"]) == {"head", "2"}
    figure = blockwise.plot_accuracy_by_block(tmp_path)
    assert len(figure.axes) == 1


@pytest.mark.parametrize("scope", ["head", 1, "full"])
def test_what_was_trained_is_a_plain_network(backbone, loaders, tmp_path, scope):
    partition = make_partition(backbone, num_blocks=3)
    (record,) = train_scopes(backbone, partition, scope, loaders, results_dir=tmp_path, lr=1e-2, **QUICK)
    network = fine_tuned(backbone, record)
    with torch.no_grad():
        predicted = [QUICK["classes"][i] for images, _ in loaders["test"] for i in network(images).argmax(1)]
    with Path(record["folder"], "predictions.csv").open() as file:
        assert predicted == [line["predicted"] for line in csv.DictReader(file)]
    other = load_backbone("timm:test_efficientnet", pretrained=False, image_size=32)
    if scope != "head":
        with pytest.raises(InputError, match="was trained on another network than test_efficientnet"):
            fine_tuned(other, record)
    Path(record["folder"], "weights.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        fine_tuned(backbone, record)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, p, d: load_backbone("vgg61"), "no model is named vgg61"),
        (lambda b, p, d: load_backbone(StubNetwork()), "needs name= and image_size="),
        (lambda b, p, d: make_partition(b, num_blocks=99), "partition.num_blocks=99 does not fit"),
        (lambda b, p, d: make_partition(b, "halves"), "partition=halves is unknown"),
        (lambda b, p, d: train_scopes(b, p, 7, d, classes="ab"), "block=7 is out of range"),
        (lambda b, p, d: train_scopes(b, p, "top2", d, classes="ab"), "top2 needs the records of other scopes"),
        (lambda b, p, d: train_scopes(b, p, 0, {"train": d["train"]}, classes="ab"), "data lacks val, test"),
        (lambda b, p, d: read_records("/nowhere"), "holds no records"),
    ],
)
def test_wrong_input_is_one_sentence(backbone, loaders, call, message):
    with pytest.raises(InputError, match=message):
        call(backbone, make_partition(backbone, num_blocks=3), loaders)


def test_importing_the_package_waits_for_nothing():
    code = (
        "import blockwise, sys; assert 'torch' not in sys.modules; blockwise.run_study; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonesuch"):
        blockwise.nonesuch  # noqa: B018


@pytest.mark.slow
def test_users_get_its_types(tmp_path):
    right = "from blockwise import load_backbone\nsize: int = load_backbone('vgg16').images.size\n"
    for name, text, code in (("right", right, 0), ("wrong", right.replace(": int", ": str"), 1)):
        (tmp_path / f"{name}.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", f"{name}.py"], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == code, done.stdout
