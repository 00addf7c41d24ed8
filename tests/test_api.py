"""The Python API."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import StubNetwork
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import blockwise
from blockwise import (
    BlockwiseDataModule,
    api_trainer,
    fine_tuned,
    load_backbone,
    make_partition,
    read_records,
    run_study,
    train_scopes,
)
from blockwise.data.loaders import LoaderDataModule
from blockwise.data.sources.digits import Digits
from blockwise.errors import InputError
from blockwise.results import read_predictions

TEN = [*"abcdefghij"]
QUICK = {"classes": TEN, "max_epochs": 2, "accelerator": "cpu", "quiet": True}


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
    # the network is cut in place before it trains; its weights are those that it was loaded with
    backbone = load_backbone("timm:test_resnet", pretrained=False, image_size=32)
    assert fine_tuned(backbone, frame.iloc[0]) is not None
    figure = blockwise.plot_accuracy_by_block(tmp_path)
    assert len(figure.axes) == 1


@pytest.mark.parametrize("scope", [pytest.param("head", marks=pytest.mark.slow), 1, "full"])
def test_what_was_trained_is_a_plain_network(backbone, loaders, tmp_path, scope):
    partition = make_partition(backbone, num_blocks=3)
    (record,) = train_scopes(backbone, partition, scope, loaders, results_dir=tmp_path, lr=1e-2, **QUICK)
    network = fine_tuned(backbone, record)
    with torch.no_grad():
        predicted = [QUICK["classes"][i] for images, _ in loaders["test"] for i in network(images).argmax(1)]
    kept = read_predictions(record, "test")
    assert predicted == [kept.classes[number] for number in kept.predicted]
    images, _ = next(iter(loaders["test"]))
    for same in (record.folder, Path(record.folder), read_records(record.folder).iloc[0]):
        assert torch.equal(network(images), fine_tuned(backbone, same)(images))
    other = load_backbone("timm:test_efficientnet", pretrained=False, image_size=32)
    with pytest.raises(InputError, match="with the weights random, but this backbone is test_efficientnet"):
        fine_tuned(other, record)
    random = load_backbone("timm:test_resnet", pretrained=False, image_size=32, seed=1)
    with pytest.raises(InputError, match="this backbone is test_resnet with random, whose tensors differ"):
        fine_tuned(random, record)
    early = replace(record, backbone=replace(record.backbone, checksum=None))
    assert torch.equal(network(images), fine_tuned(backbone, early)(images))
    if scope != "head":
        early = replace(early, backbone=replace(early.backbone, weights=None))
        with pytest.raises(InputError, match="was trained on a network other than test_efficientnet"):
            fine_tuned(other, early)
    with pytest.raises(InputError, match="int is not a record: give one, a row of read_records, or a cell's folder"):
        fine_tuned(backbone, 3)
    with pytest.raises(InputError, match="contains no record"):
        fine_tuned(backbone, Path(record.folder).parent)
    Path(record["folder"], "weights.safetensors").unlink()
    with pytest.raises(InputError, match="contains no weights"):
        fine_tuned(backbone, record)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, p, d: load_backbone("vgg61"), "there is no model vgg61"),
        (lambda b, p, d: load_backbone(StubNetwork()), "needs name= and image_size="),
        (
            lambda b, p, d: load_backbone(StubNetwork(), name="x", image_size=32, checkpoint="w.pth"),
            "load your own with load_state_dict",
        ),
        (lambda b, p, d: make_partition(b, num_blocks=99), "partition.num_blocks=99 does not fit"),
        (lambda b, p, d: make_partition(b, "halves"), "there is no partitioner 'halves'"),
        (lambda b, p, d: train_scopes(b, p, 7, d, classes=TEN), "block=7 is out of range"),
        (lambda b, p, d: train_scopes(b, p, [0, "top2"], d, classes=TEN), "top2 needs 2 single blocks"),
        (lambda b, p, d: train_scopes(b, p, 0, {"train": d["train"]}, classes=TEN), "data lacks val, test"),
        (lambda b, p, d: read_records("/nowhere"), "contains no records"),
    ],
)
def test_wrong_input_is_one_sentence(backbone, loaders, call, message):
    with pytest.raises(InputError, match=message):
        call(backbone, make_partition(backbone, num_blocks=3), loaders)


def of(values):
    return DataLoader(values, batch_size=10)


IMAGES, LABELS = torch.randn(20, 3, 32, 32), torch.arange(20) % 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0 must be an integer"),
        ({"max_epochs": 1.5}, "max_epochs=1.5 must be an integer"),
        ({"lr": -1}, "lr=-1.0 must be a number greater than 0"),
        ({"lr": "abc"}, "lr=abc must be a number greater than 0"),
        ({"lr": float("nan")}, "lr=nan must be a number greater than 0"),
        ({"lr": []}, r"lr=\[\] trains nothing"),
        ({"lr": [1e-3, 1e-3]}, "lists a learning rate twice"),
        ({"seed": -1}, "seed=-1 must be an integer"),
        ({"seed": 2**40}, "is too large"),
        ({"patience": 0}, "patience=0 must be an integer"),
        ({"norm": "bogus"}, "norm=bogus is unknown"),
        ({"data_name": "../../evil"}, "data_name=../../evil must be a name"),
        ({"classes": "ab"}, "two or more different names"),
        ({"classes": ["a", "a"]}, "two or more different names"),
        ({"classes": TEN[:5]}, "train labels must be between 0 and 4"),
        ({"optimizer": "adam"}, "cannot be called with parameter groups"),
        ({"accelerator": "bogus"}, "Lightning's trainer refuses its settings"),
        ({"devices": "auto"}, "devices=auto must be a number of devices"),
        ({"devices": -1}, "devices=-1 must be a number of devices"),
        ({"strategy": "ddp"}, "strategy=ddp cannot train cells side by side"),
        ({"data_version": {"a": 1}}, "data_version={'a': 1} must be a text or a number"),
        ({"precision": "bf16-true"}, "precision=bf16-true is unknown: choose 32-true or bf16-mixed or 16-mixed"),
        ({"gradient_clip_val": 1.0}, "use optimizer.clip_norm=1.0"),
        ({"max_time": "00:00:01:00"}, "trainer.max_time=00:00:01:00 does not fit"),
        ({"data": None}, "data must be a LightningDataModule, or a mapping of DataLoaders"),
        ({"data": {"test": None}}, "data lacks test"),
        ({"data": {"val": of([])}}, r"data\['val'\] yields no batch"),
        ({"data": {"val": 3}}, r"data\['val'\] yields no batch"),
        ({"data": {"train": of(IMAGES)}}, "must be pairs of tensors"),
        ({"data": {"train": of(TensorDataset(IMAGES[:, :1], LABELS))}}, r"shape \(batch, 3, 32, 32\)"),
        ({"data": {"test": of(TensorDataset(IMAGES.byte(), LABELS))}}, "must be floating-point tensors"),
        ({"data": {"test": of(TensorDataset(IMAGES, LABELS.float()))}}, r"must be torch.long of shape \(batch,\)"),
        ({"data": {"val": of(TensorDataset(IMAGES, LABELS[:, None]))}}, r"must be torch.long of shape \(batch,\)"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_trains(backbone, loaders, tmp_path, change, message):
    data = change.get("data", {})
    options = {**QUICK, **change, "data": {**loaders, **data} if isinstance(data, dict) else data}
    with pytest.raises(InputError, match=message):
        train_scopes(backbone, make_partition(backbone, num_blocks=3), 1, results_dir=tmp_path, **options)
    assert not list(tmp_path.rglob("record.json"))


def test_numbers_of_numpy_and_torch_are_numbers(backbone, loaders, tmp_path):
    partition = make_partition(backbone, "even", num_blocks=np.int64(2))
    first, *others = (
        train_scopes(backbone, partition, scopes, loaders, results_dir=tmp_path, **{**QUICK, **options})
        for scopes, options in (
            (1, {"lr": [0.25], "max_epochs": 1, "data_version": 3}),
            (torch.tensor(1), {"lr": torch.tensor(0.25), "max_epochs": np.int64(1), "data_version": np.int64(3)}),
            ([1], {"lr": 0.25, "max_epochs": 1, "data_version": 3, "precision": "32-true", "devices": np.int64(1)}),
        )
    )
    assert others == [first, first]


def test_the_default_is_one_device(loaders):
    factory = api_trainer.trainer_factory({"accelerator": "cpu"}, LoaderDataModule(loaders, seed=0))
    assert factory.args[0]["devices"] == 1


@pytest.mark.slow
def test_what_gives_no_result_is_not_recorded(backbone, loaders, tmp_path):
    partition = make_partition(backbone, num_blocks=3)
    for limit, missing in (("limit_test_batches", "test"), ("limit_val_batches", "training and validation")):
        with pytest.raises(InputError, match=f"1 has no result: there were no batches for {missing}"):
            train_scopes(backbone, partition, 1, loaders, results_dir=tmp_path, **QUICK, **{limit: 0})
    assert not list(tmp_path.rglob("record.json"))


def test_a_partition_of_another_network_is_refused(backbone, loaders, tmp_path):
    other = load_backbone("timm:test_efficientnet", pretrained=False, image_size=32)
    with pytest.raises(InputError, match="the partition does not belong to test_efficientnet"):
        train_scopes(other, make_partition(backbone, num_blocks=3), 1, loaders, results_dir=tmp_path, **QUICK)


def test_numbers_of_numpy_are_numbers(backbone, loaders, tmp_path):
    options = {**QUICK, "seed": np.int64(3), "lr": np.float32(0.5), "max_epochs": np.int64(1), "classes": np.arange(10)}
    (record,) = train_scopes(
        backbone, make_partition(backbone, num_blocks=3), np.int64(1), loaders, results_dir=tmp_path, **options
    )
    assert (record["seed"], record["settings"]["lr"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "neither a model name nor a network"),
        ({"model": StubNetwork(), "name": "a/b", "image_size": 32}, "name=a/b must be a name"),
        ({"model": StubNetwork(), "name": "stub", "image_size": -3}, "image_size=-3 must be an integer"),
        ({"model": torch.nn.Conv2d(3, 8, 3), "name": "conv", "image_size": 32}, r"not \(2, 8, 30, 30\)"),
        (
            {"model": torch.nn.Linear(3, 8), "name": "linear", "image_size": 32},
            "cannot process images of 32 x 32 pixels",
        ),
    ],
)
def test_a_network_that_is_none_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        load_backbone(**options)


def test_options_of_a_partitioner_are_values_of_python(backbone):
    every = make_partition(backbone, num_blocks=None)
    assert len(every) > len(make_partition(backbone, "segment", num_blocks=3, separators=("pool", "activation")))
    with pytest.raises(InputError, match="the partitioner window has no option lenght. Did you mean 'length'?"):
        make_partition(backbone, "window", lenght=2)


def test_importing_the_package_waits_for_nothing():
    subprocess.run([sys.executable, "-c", "import blockwise, sys; assert 'torch' not in sys.modules"], check=True)
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
