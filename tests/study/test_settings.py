import os
import subprocess
import sys

import pytest
import timm
import torch
from conftest import SMALL, quick_config
from PIL import Image
from torchvision.transforms import v2

from blockwise.backbone.layers import record_layers
from blockwise.backbone.load import ImageSpec
from blockwise.data import BlockwiseDataModule, Digits
from blockwise.partition import AutoPartitioner, LayerPartitioner, UnitPartitioner
from blockwise.results.finished import run_key
from blockwise.results.store import settings_hash, sweep_hash
from blockwise.study.settings import describe_data, partition_settings
from blockwise.study.study import Study

BLUR = "{_target_:torchvision.transforms.v2.GaussianBlur,kernel_size:3}"
SPEC = ImageSpec(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=0.8)


def settings(cfg, console):
    return Study.from_config(cfg, console).settings


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The settings of the small study."""
    places = [f"{key}={tmp_path_factory.mktemp('default')}" for key in ("results_dir", "cache.folder")]
    return settings(quick_config([*SMALL, *places, "partition.num_blocks=3"]), None)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.batch_size=8",
        "data.augment=[flip]",
        f"data.augment=[crop,{BLUR}]",
        "data.mixup=0.2",
        "gpu.tf32=true",
        "data.cutmix=1",
        "data.sampler=balanced",
        "data.split_seed=0",
        "data.image_size=40",
        "data.crop_pct=0.9",
        "data.test_per_class=4",
        "partition=unit",
        "model.head=mlp",
        "partition.num_blocks=2",
        "optimizer.weight_decay=0",
        "optimizer.block_lr=1e-4",
        "optimizer=sgd",
        "freeze.norm=train",
        "optimizer.layer_decay=0.5",
        "optimizer.no_decay=true",
        "optimizer.clip_norm=1",
        "scheduler=cosine",
        "scheduler.warmup=0.5",
        "loss=focal",
        "loss.label_smoothing=0.1",
        "loss.class_weights=balanced",
        "select_by=loss",
        "early_stopping.patience=3",
        "trainer.max_epochs=3",
        "trainer.precision=bf16-mixed",
        "+trainer.limit_train_batches=1",
        "model.mean=[0.1,0.2,0.3]",
        "model.interpolation=lanczos",
    ],
)
def test_what_changes_the_result_is_covered(small, console, default, override):
    assert default != settings(small(*override.split()), console)


@pytest.mark.parametrize(
    "override",
    [
        "data.num_workers=2",
        "logger=csv",
        "block=head",
        "trainer.accelerator=auto",
        "optimizer.lr=[1e-4,1e-3]",
        "cache.folder=null",
        "policy=static",
        "scheduler=constant",
        "loss=cross_entropy",
        "select_by=top1",
    ],
)
def test_what_changes_nothing_is_not(small, console, default, override):
    assert default == settings(small(override), console)


def test_seeds_may_share_a_split(small, console):
    def names(*overrides):
        study = Study.from_config(small(*overrides), console)
        splits = study.data.module.splits
        return [[s.name for s in split] for split in (splits.train, splits.val, splits.test)], sweep_hash(
            study.settings
        )

    split, sweep = names("seed=0")
    shared = [names(f"seed={seed}", "data.split_seed=0") for seed in (0, 1)]
    assert [one for one, _ in shared] == [split, split]
    assert len({sweep, *(key for _, key in shared)}) == 2, "one sweep with a shared split, another one without"
    assert names("seed=1")[0] != split


@pytest.mark.parametrize(
    ("one", "other", "stored"),
    [
        ("light", "[crop,flip]", ["crop", "flip"]),
        ("none", "[]", []),
        ("colour", "[crop,flip,colour]", ["crop", "flip", "colour"]),
        (f"[{BLUR}]", f"[{BLUR}]", [{"_target_": "torchvision.transforms.v2.GaussianBlur", "kernel_size": 3}]),
    ],
)
def test_a_preset_is_stored_as_its_list(small, console, one, other, stored):
    augment = [settings(small(f"data.augment={text}"), console)["data"]["augment"] for text in (one, other)]
    assert augment == [stored, stored]


def test_newer_settings_at_their_default_leave_the_hash_as_it_was(small, console):
    found = settings(small("data.mixup=0.0"), console)
    assert set(found["data"]) == set(
        "name train_per_class val_per_class test_per_class batch_size augment skip_broken fingerprint image_size "
        "mean std interpolation crop_pct".split()
    )
    assert settings(small("data.mixup=1"), console)["data"]["mixup"] == 1.0


def described(**options):
    return describe_data(BlockwiseDataModule(Digits(), SPEC, **options))


def test_a_module_made_in_python_is_described_as_before():
    assert described() == described(augment=["crop", "flip"]) == described(augment="light")
    assert not {"mixup", "cutmix", "sampler"} & set(described())
    assert described(mixup=0.1)["mixup"] == 0.1
    assert described(sampler="balanced")["sampler"] == "balanced"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (v2.ColorJitter(0.1), v2.ColorJitter(0.2)),
        (v2.RandomApply([v2.GaussianBlur(3)]), v2.RandomApply([v2.GaussianBlur(5)])),
        (v2.Compose([v2.ToDtype(torch.uint8)]), v2.Compose([v2.ToDtype(torch.uint8, scale=True)])),
        (v2.RandomRotation(9, v2.InterpolationMode.NEAREST), v2.RandomRotation(9, v2.InterpolationMode.BILINEAR)),
        (v2.Lambda(lambda image: image // 2), v2.Lambda(lambda image: image // 3)),
    ],
)
def test_transforms_of_python_are_told_apart_by_their_options(one, other):
    hashes = [settings_hash(described(augment=[transform])) for transform in (one, other, one)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_function_has_the_same_hash_in_every_process():
    code = "from blockwise.study.settings import describe; print(describe(lambda x: x in {'a', 'b', 'c', 'd'}))"

    def described_by(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout

    assert described_by("1") == described_by("2") != b""


def test_a_finished_run_with_a_transform_of_torchvision_is_recalled(small):
    settings = {"data": {"augment": [{"_target_": "torchvision.transforms.v2.GaussianBlur"}]}, "model": {}}
    assert run_key(settings) is not None
    settings["data"]["augment"][0]["_target_"] = "mine.Blur"
    assert run_key(settings) is None


def test_names_of_classes_are_no_part_of_the_settings_of_a_folder(small, console, tmp_path):
    """The keys are those of the first versions, whose records are found."""
    for name in ("n01", "n02"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "names.txt").write_text("tench\nshark\n")
    options = ["data=imagefolder", f"data.root={tmp_path / 'images'}", "data.batch_size=4"]
    plain = settings(small(*options), console)
    assert settings(small(*options, f"data.classes={tmp_path / 'names.txt'}"), console) == plain
    assert settings(small(*options[:1], f"data.root=[{tmp_path / 'images'}]", options[2]), console) == plain
    assert set(plain["data"]) == set(
        "name train_per_class val_per_class test_per_class batch_size skip_broken augment fingerprint image_size mean "
        "std interpolation crop_pct".split()
    )


def test_partitions_that_the_first_versions_cut_elsewhere_are_told_apart():
    def partition(name, partitioner):
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0).eval()
            size = network.default_cfg["input_size"][-1]
            return partitioner(record_layers(network, torch.zeros(1, 3, size, size)), network)

    assert partition_settings(partition("resnet18", LayerPartitioner())) == {"name": "layer"}  # as ever
    assert partition_settings(partition("test_vit", LayerPartitioner())) == {"name": "layer", "rules": 2}
    assert partition_settings(partition("test_vit", UnitPartitioner())) == {"name": "unit"}
    assert partition_settings(partition("vgg11", AutoPartitioner())) == {"name": "segment"}


def test_auto_and_the_partitioner_that_it_chooses_share_their_records(small, console):
    auto, unit = (settings(small(f"partition={name}", "partition.num_blocks=3"), console) for name in ("auto", "unit"))
    assert auto == unit
    assert auto["partition"] == {"name": "unit", "num_blocks": 3, "balance": "layers"}
