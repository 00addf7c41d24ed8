"""Studies of Python objects: no two records share a folder, and everything works as on the command line."""

import json
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from blockwise import fine_tuned, load_backbone, make_partition, train_scopes
from blockwise.data import BlockwiseDataModule, Digits
from blockwise.errors import Interrupted
from blockwise.results import read_records
from blockwise.study.settings import describe_rule
from blockwise.study.settings.describe import describe_loader
from blockwise.tracking.callback import LightningLog
from blockwise.training.module import BlockwiseModule

QUICK = {"classes": [*"abcdefghij"], "max_epochs": 2, "accelerator": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("timm:test_resnet", pretrained=False, image_size=32)


@pytest.fixture(scope="module")
def partition(backbone):
    return make_partition(backbone, num_blocks=3)


def make_loaders(batch_size=10, shift=0.0, shuffle=False, generator=None):
    def loader(count, shuffled):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)) + shift
        dataset = TensorDataset(images, torch.arange(count) % 10)
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffled, generator=generator)

    return {"train": loader(40, shuffle), "val": loader(20, False), "test": loader(20, False)}


class Dropping(torch.utils.data.Dataset):
    """A user's data set, whose content the hash does not cover."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((3, 32, 32), float(index)), index % 10


class Weighted:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, logits, labels):
        return cross_entropy(logits, labels, torch.tensor(self.weights))


def by_generator(seed):
    return make_loaders(shuffle=True, generator=torch.Generator().manual_seed(seed))


def own_loaders(batch_size=10):
    return dict.fromkeys(("train", "val", "test"), DataLoader(Dropping(), batch_size=batch_size))


def digits(backbone, **options):
    source = Digits(train_per_class=6, val_per_class=2, test_per_class=3, seed=options.pop("split", 0))
    return BlockwiseDataModule(source, backbone.images, **{"batch_size": 10, **options})


def sgd(**options):
    return lambda groups: torch.optim.SGD(groups, **options)


def slower_head(groups):
    return torch.optim.SGD(
        [{**group, "lr": group["lr"] * (0.1 if index == 0 else 1)} for index, group in enumerate(groups)]
    )


# two calls that must not share a record, as functions of the backbone: (first, second)
DIFFERENT = {
    "balance of the partition": (
        lambda b: {"partition": make_partition(b, "segment", num_blocks=3, balance="flops")},
        lambda b: {"partition": make_partition(b, "segment", num_blocks=3, balance="layers")},
    ),
    "optimizers made by lambdas": (lambda b: {"optimizer": sgd()}, lambda b: {"optimizer": sgd(momentum=0.9)}),
    "optimizers that treat groups differently": (lambda b: {"optimizer": sgd()}, lambda b: {"optimizer": slower_head}),
    "weight decay": (
        lambda b: {"optimizer": partial(torch.optim.AdamW, weight_decay=0.1)},
        lambda b: {"optimizer": partial(torch.optim.AdamW, weight_decay=0.2)},
    ),
    "trainer settings": (lambda b: {}, lambda b: {"limit_train_batches": 1}),
    "batch size": (lambda b: {"data": make_loaders(10)}, lambda b: {"data": make_loaders(20)}),
    "images": (lambda b: {"data": make_loaders()}, lambda b: {"data": make_loaders(shift=1.0)}),
    "order of images": (lambda b: {"data": make_loaders()}, lambda b: {"data": make_loaders(shuffle=True)}),
    "batch size of a data module": (
        lambda b: {"data": digits(b, batch_size=10)},
        lambda b: {"data": digits(b, batch_size=12)},
    ),
    "split of a data module": (lambda b: {"data": digits(b)}, lambda b: {"data": digits(b, split=1)}),
    "augmentation": (lambda b: {"data": digits(b, augment=[])}, lambda b: {"data": digits(b, augment=["flip"])}),
    "version of the user's data": (
        lambda b: {"data": own_loaders(), "data_version": "1"},
        lambda b: {"data": own_loaders(), "data_version": "2"},
    ),
    "class weights in a list": (lambda b: {"loss": Weighted([1.0] * 10)}, lambda b: {"loss": Weighted([2.0] * 10)}),
    "order by a generator": (lambda b: {"data": by_generator(1)}, lambda b: {"data": by_generator(2)}),
    "batch size of the user's data": (lambda b: {"data": own_loaders()}, lambda b: {"data": own_loaders(5)}),
}


# the first few often, the others with the slow tests
OFTEN = 2


@pytest.mark.parametrize(
    "name", [*list(DIFFERENT)[:OFTEN], *(pytest.param(n, marks=pytest.mark.slow) for n in list(DIFFERENT)[OFTEN:])]
)
def test_other_settings_leave_another_record(backbone, partition, tmp_path, name):
    for options in DIFFERENT[name]:
        call = {"partition": partition, "data": make_loaders(), **QUICK, **options(backbone), "max_epochs": 1}
        train_scopes(backbone, call.pop("partition"), 1, call.pop("data"), results_dir=tmp_path, **call)
    assert len(read_records(tmp_path)) == 2


class Net(nn.Module):
    def __init__(self, seed=0, dropout=0.1, activation=nn.ReLU):
        super().__init__()
        torch.manual_seed(seed)
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), activation())
        self.two = nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(dropout))

    def forward(self, images):
        return self.two(self.one(images)).mean((2, 3))


def test_own_networks_of_one_name_are_told_apart_and_found_again(tmp_path):
    for different in ({}, {"seed": 1}, {"dropout": 0.2}, {"activation": nn.SiLU}, {}):
        own = load_backbone(Net(**different), name="mine", image_size=32)
        options = {**QUICK, "max_epochs": 1, "results_dir": tmp_path}
        train_scopes(own, make_partition(own, "layer"), "head", make_loaders(), **options)
    assert len(read_records(tmp_path)) == 4
    for seed in (0, 1, 0):
        random = load_backbone("timm:test_resnet", pretrained=False, image_size=32, seed=seed)
        train_scopes(random, make_partition(random, num_blocks=2), "head", make_loaders(), **options)
    assert len(read_records(tmp_path)) == 6


def test_a_network_that_has_changed_is_another(tmp_path):
    own = load_backbone(Net(), name="mine", image_size=32)
    call = partial(train_scopes, own, make_partition(own, "layer"), "head", make_loaders(), results_dir=tmp_path)
    (first,) = call(**QUICK)
    own.network.load_state_dict(Net(seed=1).state_dict())
    (second,) = call(**QUICK)
    assert first.backbone.checksum != second.backbone.checksum
    assert len(read_records(tmp_path)) == 2
    fine_tuned(own, second)


def test_a_generator_of_a_loader_finds_its_record_again(backbone, partition, tmp_path):
    loaders = by_generator(1)
    next(iter(loaders["train"]))  # it has drawn some already, which does not matter
    first, again, same = (
        train_scopes(backbone, partition, "head", data, results_dir=tmp_path, **QUICK)
        for data in (loaders, loaders, by_generator(1))
    )
    assert first == again == same


SMOOTHING, SEEN, LOWEST, NAMES = 0.1, [], -np.inf, np.array(["cat", "dog"])


def smoothed(logits, labels):
    SEEN.append(1)
    assert [logits.mean() > LOWEST for _ in NAMES]
    return (lambda: cross_entropy(logits, labels, label_smoothing=SMOOTHING))()


class Child(nn.Module):
    def __init__(self, smoothing):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(self, logits, labels):
        return self.loss(logits, labels)


class Own:
    def __init__(self, value):
        self.value = value

    def __call__(self, logits, labels):
        return cross_entropy(logits, labels, label_smoothing=float(self.value))


class Holds:
    """An own search, say, which is not called."""

    def __init__(self, value):
        self.value = value

    def loss(self, logits, labels):
        return cross_entropy(logits, labels)

    @cache  # noqa: B019
    def kept(self):
        return self.value


@pytest.mark.parametrize(
    "make",
    [
        Child,
        Holds,
        lambda v: Own(np.float32(v)),
        lambda v: Own(np.array([v, 1])[::-1]),
        lambda v: Own(np.array([v, None])),
        lambda v: Own([v, np.inf]),
        lambda v: Own(v).__call__,
        lambda v: Holds([v]).loss,
        lambda v: partial(Holds([v]).loss, labels=0),
    ],
)
def test_rules_are_told_apart_by_what_they_hold(make):
    one, other, again = (json.dumps(describe_rule(make(value)), allow_nan=False) for value in (0.1, 0.2, 0.1))
    assert one == again != other


def test_what_cannot_be_described_has_its_name():
    described = json.dumps([describe_rule(value) for value in (Holds(1).kept, print, Own(object()), Own(NAMES))])
    assert described.count("__name__") == 0
    assert "Own" in described


def test_long_lists_count_by_their_hash():
    one, other = (describe_rule(Own(list(range(first, first + 5000)))) for first in (0, 1))
    assert one != other
    assert len(json.dumps(one)) < 300


def test_a_function_is_told_apart_by_the_numbers_of_its_module(monkeypatch):
    before = describe_rule(smoothed)
    SEEN.append(1)  # a list of the module, which training may fill
    assert describe_rule(smoothed) == before
    monkeypatch.setattr(sys.modules[__name__], "SMOOTHING", 0.2)
    assert describe_rule(smoothed) != before


class Groups(Sampler):
    def __init__(self, groups):
        self.groups = groups

    def __iter__(self):
        return iter(self.groups)

    def __len__(self):
        return len(self.groups)


def test_samplers_are_told_apart():
    images = TensorDataset(torch.zeros(4, 3, 2, 2), torch.arange(4))

    def described(*weights):
        return describe_loader(DataLoader(images, sampler=WeightedRandomSampler(weights, 4)))

    assert described(1, 1, 1, 2) == described(1, 1, 1, 2) != described(1, 1, 2, 1)
    some = [describe_loader(DataLoader(images, sampler=SubsetRandomSampler(own))) for own in ([0, 1], [0, 2])]
    assert some[0] != some[1]
    assert describe_loader(DataLoader(images, sampler=SubsetRandomSampler(range(2)))) == some[0]
    odd = describe_loader(DataLoader(images, sampler=SubsetRandomSampler({0, 1})))
    assert "sampling" not in odd
    json.dumps(odd, allow_nan=False)
    groups = [describe_loader(DataLoader(images, batch_sampler=Groups(own))) for own in ([[0, 1]], [[0, 2]])]
    assert groups[0] != groups[1]
    plain = describe_loader(DataLoader(images, shuffle=True))
    assert plain.keys() == {"batches", "batch_size", "dataset", "sampler", "images", "fingerprint"}  # as it was before
    assert describe_loader(DataLoader(images, shuffle=True, collate_fn=len)) != plain


def test_the_same_settings_find_the_record_whatever_runs_them(backbone, partition, tmp_path):
    first = train_scopes(backbone, partition, ["head", 1], make_loaders(), results_dir=tmp_path, **QUICK)
    changes = {"enable_progress_bar": True, "devices": 1, "num_nodes": 1}
    again = train_scopes(backbone, partition, [1, 2], make_loaders(), results_dir=tmp_path, **QUICK, **changes)
    assert again[0] == first[1]  # the old record, including its time
    assert len(read_records(tmp_path)) == 3


@pytest.mark.slow
def test_retraining_replaces_the_record_and_plan_trains_nothing(backbone, partition, tmp_path, capsys):
    call = partial(train_scopes, backbone, partition, "head", make_loaders(), results_dir=tmp_path)
    assert call(**{**QUICK, "quiet": False}, plan=True) == []
    assert "1 cells, 0 of them already recorded" in " ".join(capsys.readouterr().out.split())
    (first,) = call(**QUICK)
    (file,) = tmp_path.rglob("record.json")
    written = file.stat().st_mtime_ns
    (second,) = call(**QUICK, retrain=True)
    assert len(read_records(tmp_path)) == 1
    assert file.stat().st_mtime_ns > written
    assert first.metrics == second.metrics


@pytest.mark.slow
def test_the_best_blocks_are_trained_together(backbone, partition, tmp_path):
    *single, top = train_scopes(backbone, partition, ["all", "top2"], make_loaders(), results_dir=tmp_path, **QUICK)
    blocks = [record for record in single if record.block is not None]
    best = sorted(blocks, key=lambda r: (r.score("val"), -r.score("val", "loss"), r.block))[-2:]
    assert top.cell.blocks == tuple(sorted(r.block for r in best))


def test_loggers_have_a_run_per_scope(backbone, partition, tmp_path):
    log = partial(LightningLog, logger=partial(CSVLogger, tmp_path / "logs"))
    options = {"results_dir": tmp_path / "results", "loggers": [log]}
    train_scopes(backbone, partition, ["head", 1], make_loaders(), **options, **QUICK)
    assert len(list((tmp_path / "logs").rglob("metrics.csv"))) == 2


@pytest.mark.parametrize("generator", [None, 7])
@pytest.mark.parametrize("stop_at", [pytest.param((0, 2), marks=pytest.mark.slow), (1, 1)])
def test_shuffled_loaders_resume_within_an_epoch_bit_for_bit(
    backbone, partition, tmp_path, monkeypatch, generator, stop_at
):
    def train(folder, **options):
        seeded = None if generator is None else torch.Generator().manual_seed(generator)
        loaders = make_loaders(shuffle=True, generator=seeded)
        records = train_scopes(backbone, partition, ["head", 1], loaders, results_dir=folder, **QUICK, **options)
        return [load_file(Path(record.folder, "weights.safetensors")) for record in records]

    torch.manual_seed(1)
    whole = train(tmp_path / "whole")
    original = BlockwiseModule.on_train_batch_end if hasattr(BlockwiseModule, "on_train_batch_end") else None

    def stop(self, _outputs, _batch, index):
        if (self.current_epoch, index) == stop_at:
            raise Interrupted(15)

    monkeypatch.setattr(BlockwiseModule, "on_train_batch_end", stop)
    torch.manual_seed(2)  # the order must not depend on the global generator
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", checkpoint_minutes=0)
    monkeypatch.setattr(BlockwiseModule, "on_train_batch_end", original)
    parts = train(tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_alone_equals_among_with_shuffled_loaders(backbone, partition, tmp_path):
    call = partial(train_scopes, backbone, partition, **QUICK)
    among = call(scopes="all", data=make_loaders(shuffle=True), results_dir=tmp_path / "among")
    (alone,) = call(scopes=1, data=make_loaders(shuffle=True), results_dir=tmp_path / "alone")
    assert alone.metrics == among[2].metrics


class Counting(L.Callback):
    def __init__(self):
        self.epochs = 0

    def on_train_epoch_end(self, *_):
        self.epochs += 1


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_ones_own_run(backbone, partition, tmp_path, several):
    counting = Counting()
    callbacks = [counting] if several else counting
    train_scopes(backbone, partition, "head", make_loaders(), results_dir=tmp_path, callbacks=callbacks, **QUICK)
    assert counting.epochs == 2


def test_several_devices_are_started_with_torchrun(backbone, partition, tmp_path):
    with pytest.raises(ValueError, match=re.escape("torchrun --nproc-per-node=2")):
        train_scopes(backbone, partition, "head", make_loaders(), results_dir=tmp_path, **QUICK, devices=2)


def test_nothing_global_changes(backbone, partition, tmp_path):
    import logging
    import os
    import warnings

    def state():
        levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "huggingface_hub")]
        return warnings.filters[:], levels, dict(os.environ), torch.random.get_rng_state().tolist()

    before = state()
    train_scopes(backbone, partition, "head", make_loaders(shuffle=True), results_dir=tmp_path, **QUICK)
    load_backbone("timm:test_resnet", pretrained=False, image_size=32, seed=3)
    assert state() == before


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_python_study import QUICK, make_loaders
from blockwise import load_backbone, make_partition, train_scopes
backbone = load_backbone("timm:test_resnet", pretrained=False, image_size=32)
partition = make_partition(backbone, num_blocks=3)
loaders = make_loaders(batch_size=9, shuffle=True)
train_scopes(backbone, partition, ["head", 1], loaders, results_dir="results", norm="eval", **QUICK, devices=2)
"""


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(backbone, partition, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "script.py"]
    subprocess.run(torchrun, cwd=tmp_path, check=True, timeout=300)
    loaders = make_loaders(batch_size=9, shuffle=True)
    one = train_scopes(backbone, partition, ["head", 1], loaders, results_dir=tmp_path / "one", norm="eval", **QUICK)
    two = {record.cell.scope: record for record in read_records(tmp_path / "results")}
    for record in one:
        other = two[record.cell.scope]
        assert other.settings == record.settings
        assert other.data == record.data
        weights = load_file(Path(other.folder, "weights.safetensors"))
        for name, tensor in load_file(Path(record.folder, "weights.safetensors")).items():
            assert (tensor - weights[name]).abs().max() < 1e-5, name
