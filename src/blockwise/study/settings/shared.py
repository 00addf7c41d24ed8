"""All settings that change a cell's result; they are stored in its record and determine its hash.

Settings that do not change the result are left out: number of workers, loggers, device, folder of the data, and which
cells train side by side. The command line and the Python API write the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from blockwise.backbone.load import Backbone
from blockwise.backbone.partition import Partition
from blockwise.data import BlockwiseDataModule
from blockwise.data.loaders import LoaderDataModule
from blockwise.data.resumable import SPLITS
from blockwise.data.samples import Splits
from blockwise.policies import POLICY_NAMES, Policy
from blockwise.recipe.parameter_groups import OptimizerFactory
from blockwise.recipe.recipe import Loss, Recipe
from blockwise.recipe.schedulers import Schedule
from blockwise.study.data import StudyData
from blockwise.study.settings.describe import (
    describe,
    describe_loader,
    describe_optimizer,
    describe_rule,
    describe_transform,
    hash_of,
    hash_tensor,
    name_of,
)

DATA = ("name", "train_per_class", "val_per_class", "test_per_class", "batch_size", "skip_broken")
# left out of the settings at their default, so that records from before they were there keep their hash
NEWER_DATA = {"mixup": 0.0, "cutmix": 0.0, "sampler": "shuffle", "folds": None, "groups": None}
NEWER_OPTIMIZER = {"layer_decay": None, "no_decay": False, "clip_norm": None}
# settings of a trainer that do not change the result
NO_EFFECT = frozenset(
    "_target_ accelerator devices num_nodes strategy use_distributed_sampler logger callbacks default_root_dir "
    "enable_checkpointing enable_progress_bar enable_model_summary num_sanity_val_steps log_every_n_steps "
    "profiler".split()
)


def config_settings(cfg: dict[str, Any], backbone: Backbone, data: StudyData, partition: Partition) -> dict[str, Any]:
    """Return the settings that all cells of a config share; the study adds scope, blocks and learning rate per cell."""
    model = cfg["model"]
    return {
        "model": {
            "name": backbone.name,
            "source": model["source"],
            "architecture": model["architecture"] or model["name"],
            "weights": backbone.weights,
            **backbone.settings,
        },
        "data": _data_settings(cfg["data"], data, cfg["seed"]),
        "partition": {
            **partition_settings(partition),
            **(partition.options or _without(cfg["partition"], {"_target_"})),
        },
        "optimizer": {
            "name": cfg["optimizer"]["_target_"],
            **_changed(_without(cfg["optimizer"], {"_target_", "_partial_", "lr"}), NEWER_OPTIMIZER),
        },
        "freeze": freeze_settings(cfg["freeze"]["norm"], backbone.network),
        "early_stopping": cfg["early_stopping"],
        "trainer": {**_without(cfg["trainer"], NO_EFFECT), **({"tf32": True} if cfg["gpu"]["tf32"] else {})},
        "seed": cfg["seed"],
        **recipe_settings(_component(cfg["scheduler"]), _component(cfg["loss"]), cfg["select_by"]),
    }


def partition_settings(partition: Partition) -> dict[str, Any]:
    """Return what identifies a partitioner, besides its options."""
    return {"name": partition.name, **({} if partition.rules == 1 else {"rules": partition.rules})}


def _data_settings(settings: Mapping[str, Any], data: StudyData, seed: int) -> dict[str, Any]:
    module = data.module
    if not isinstance(module, BlockwiseDataModule):
        version = settings.get("version")
        return {
            **_given_data(data.name, None if version is None else str(version), data.classes, data.image_size, module),
            "options": _without(settings["source"], {"_target_"}),
        }
    images = module.images
    return {
        **{key: settings[key] for key in DATA},
        **({} if settings.get("split_seed") is None else {"split_seed": settings["split_seed"]}),
        **_training_batches(module),
        "fingerprint": module.splits.fingerprint,
        **({} if _is_told(settings, module, seed) else {"splits": describe_splits(module.splits)}),
        "image_size": images.size,
        "mean": list(images.mean),
        "std": list(images.std),
        "interpolation": images.interpolation,
        "crop_pct": images.crop_pct,
    }


def _is_told(settings: Mapping[str, Any], module: BlockwiseDataModule, seed: int) -> bool:
    """Return whether the samples and the other settings say which samples are in which split."""
    source = settings["source"]
    sizes = ("train_per_class", "val_per_class", "test_per_class")
    return (
        not module.splits.listed
        and source.get("groups") is None  # first versions did not split by them
        and source["_target_"].startswith("blockwise.")
        and all(source.get(size) == settings[size] for size in sizes)
        and (settings.get("split_seed") is not None or source.get("seed") == seed)
    )


def describe_splits(splits: Splits) -> str:
    """Return a hash of the names of the samples in each split."""
    return hash_of([[sample.name for sample in getattr(splits, split)] for split in SPLITS])


def _given_data(
    name: str, version: str | None, classes: Sequence[str], image_size: int, module: L.LightningDataModule
) -> dict[str, Any]:
    """Return the settings of data from Python."""
    described = {"name": name, "version": version, "classes": list(classes), "image_size": image_size}
    return {**described, **describe_data(module)}


def freeze_settings(norm: str, network: nn.Module) -> dict[str, Any]:
    """Return the settings of what trained blocks do in training mode.

    The first versions wrote that norms use batch statistics, although they did not; see `store.first_settings`. So what
    differs from these versions has a key of its own.
    """
    rates = (getattr(module, "p", getattr(module, "drop_prob", 0)) for module in network.modules() if _drops(module))
    return {
        "norm": norm,
        **({"batch_statistics": True} if norm == "train" else {}),
        **({"dropout": True} if any(isinstance(rate, float) and rate > 0 for rate in rates) else {}),
    }


def _drops(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "drop" in name or "stochasticdepth" in name


def _changed(settings: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those newer ones that are null or at their default."""
    return {key: value for key, value in settings.items() if key not in newer or value not in (newer[key], None)}


def _component(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and options of a class or function in a config; the name of one of ours may move between files."""
    target = str(config["_target_"])
    name = target.rpartition(".")[2] if target.startswith("blockwise.") else target
    return {"name": name, **_without(config, {"_target_", "_partial_"})}


def recipe_settings(scheduler: Mapping[str, Any], loss: Mapping[str, Any], select_by: str) -> dict[str, Any]:
    """Return the settings of a recipe that are not at their default, which records of earlier versions do not mention.

    Args:
        scheduler: Name and options of the learning rate schedule.
        loss: Name and options of the loss.
        select_by: The validation metric that selects.
    """
    constant = scheduler["name"] == "constant" and not scheduler["warmup"]
    plain = loss["name"] == "CrossEntropy" and not loss.get("label_smoothing") and loss.get("class_weights") is None
    return {
        **({} if constant else {"scheduler": dict(scheduler)}),
        **({} if plain else {"loss": {key: value for key, value in loss.items() if value is not None}}),
        **({} if select_by == "top1" else {"select_by": select_by}),
    }


def describe_policy(name: str, policy: Policy) -> dict[str, Any]:
    """Return the settings of a policy: its name and options, and its class unless the name tells it."""
    if is_dataclass(policy):
        options = {key: describe(value) for key, value in vars(policy).items()}
        told = POLICY_NAMES.get(type(policy)) == name
        return {"name": name, **({} if told else {"class": name_of(type(policy))}), **options}
    return {"name": name, "class": describe_rule(policy)}


def _without(settings: Mapping[str, Any], keys: set[str] | frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def python_settings(
    backbone: Backbone,
    partition: Partition,
    data: L.LightningDataModule,
    optimizer: OptimizerFactory,
    *,
    data_name: str,
    data_version: str | None,
    classes: Sequence[str],
    recipe: Recipe,
    seed: int,
    trainer: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings that all cells of a `train_scopes` call share, under the keys of `config_settings`."""
    callbacks = trainer.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, L.Callback) else callbacks
    return {
        "model": {
            "name": backbone.name,
            "weights": backbone.weights,
            **describe(backbone.settings),
            **_own_network(backbone),
        },
        "data": _given_data(data_name, data_version, classes, backbone.images.size, data),
        "partition": {
            **partition_settings(partition),
            "blocks": [[block.first, block.last] for block in partition.blocks],
        },
        "optimizer": {**describe_optimizer(optimizer), **_rates(recipe)},
        "freeze": freeze_settings(recipe.norm, backbone.network),
        "early_stopping": {"patience": recipe.patience},
        "trainer": {
            "precision": "32-true",
            **describe(_without(trainer, NO_EFFECT)),
            **({"callbacks": describe(callbacks)} if callbacks else {}),
        },
        "seed": seed,
        **recipe_settings(_describe_schedule(recipe.scheduler), _describe_loss(recipe.loss), recipe.select_by),
    }


def _own_network(backbone: Backbone) -> dict[str, Any]:
    """Return what tells apart networks whose weights have no name: your own, and those with random weights."""
    if backbone.weights == "random":
        return {"checksum": backbone.checksum}
    if backbone.weights != "own":
        return {}
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(backbone.network))  # of functions
    return {"checksum": backbone.checksum, "structure": hash_of(layers)}


def _rates(recipe: Recipe) -> dict[str, Any]:
    newer = {"block_lr": None, **NEWER_OPTIMIZER}
    return _changed({key: getattr(recipe, key) for key in newer}, newer)


def _describe_schedule(schedule: Schedule | None) -> dict[str, Any]:
    if schedule is None:
        return {"name": "constant", "warmup": 0}
    make = schedule.make
    options = describe(make.keywords) if isinstance(make, partial) else {}
    made = describe_rule(make.func if isinstance(make, partial) else make)
    name = made["name"] if isinstance(made, dict) else made
    if name.startswith("blockwise."):
        name, made = name.rpartition(".")[2], name
    own = {key: value for key, value in made.items() if key != "name"} if isinstance(made, dict) else {}
    lengths = {key: getattr(schedule, key) for key in ("warmup", "warmup_unit", "interval")}
    return {"name": name, **lengths, **options, **own}


def _describe_loss(loss: Loss) -> dict[str, Any]:
    if loss is cross_entropy:
        return {"name": "CrossEntropy"}
    described = describe_rule(loss)
    if isinstance(loss, torch.nn.Module):  # PyTorch keeps class weights among the buffers
        buffers = {name: hash_tensor(buffer) for name, buffer in loss.named_buffers()}
        described = {**described, **({"buffers": buffers} if buffers else {})}
    if type(loss).__module__.startswith("blockwise."):
        return {"name": type(loss).__name__, **{key: describe(value) for key, value in vars(loss).items()}}
    return {"name": described} if isinstance(described, str) else dict(described)


def describe_data(data: L.LightningDataModule) -> dict[str, Any]:
    """Return the settings that describe the images and their batches.

    They include a hash of the images' content for a `BlockwiseDataModule` and for loaders over a `TensorDataset`. For
    other loaders they include the number of images, batch size, class names of data set and sampler, and what the
    sampler holds. For other data modules they include the class name and the hyperparameters.
    """
    if isinstance(data, BlockwiseDataModule):
        images = data.images
        return {
            "fingerprint": data.splits.fingerprint,
            "splits": describe_splits(data.splits),
            "batch_size": data.batch_size,
            **_training_batches(data),
            "skip_broken": data.skip_broken,
            "seed": data.seed,
            "mean": list(images.mean),
            "std": list(images.std),
            "interpolation": images.interpolation,
            "crop_pct": images.crop_pct,
        }
    if isinstance(data, LoaderDataModule):
        return {split: describe_loader(data.loaders[split]) for split in SPLITS}
    return {"module": describe(data), "hyperparameters": describe(dict(data.hparams))}


def _training_batches(data: BlockwiseDataModule) -> dict[str, Any]:
    newer = _changed({key: getattr(data, key) for key in NEWER_DATA}, NEWER_DATA)
    return {"augment": [describe_transform(element) for element in data.augment], **newer}
