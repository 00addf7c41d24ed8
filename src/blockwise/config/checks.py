"""Checks of config values, made before anything is loaded; an invalid value raises an `InputError`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from blockwise.errors import InputError, did_you_mean, is_number
from blockwise.io.model_options import check_options
from blockwise.io.origins import check_origin, has_origin
from blockwise.results.record import SELECTIONS

GROUPS = frozenset(
    "model data partition policy optimizer scheduler loss search trainer logger freeze early_stopping sweeper "
    "checkpoint cache gpu".split()
)
# as in `data.augment`, `data.datamodule`, `data.decode` and `training.cells`, which import torch: values are checked
# before it is there
AUGMENTATIONS = ("crop", "flip", "trivialaugment", "randaugment", "colour")
PRESETS = ("none", "light", "trivialaugment", "randaugment", "colour")
SAMPLERS = ("shuffle", "balanced")
TRANSFORM = "{_target_: torchvision.transforms.v2.GaussianBlur, kernel_size: 3}"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
NORM_MODES = ("train", "eval")
UNITS = ("epoch", "step")
EXHAUSTIVE = "blockwise.search.Exhaustive"
HEADS = ("linear", "mlp", "own")
# in mixed precision, trained weights stay in float32 and arithmetic is done in 16 bits
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MAX_SEED = 2**32 - 1
# images are resized to their size divided by the crop before they are cropped
LEAST_CROP = 0.1
LARGEST_IMAGE = 10_000
# beyond this, processes only wait for one another
MOST_WORKERS = max(32, 4 * (os.cpu_count() or 1))
# settings of Lightning's trainer with which epochs are whole and each is validated; the default comes first
WHOLE_EPOCHS: Mapping[str, tuple[Any, ...]] = {
    "check_val_every_n_epoch": (1,),
    "val_check_interval": (None, 1.0),
    "num_sanity_val_steps": (0,),
    "max_steps": (-1,),
    "min_steps": (None,),
    "max_time": (None,),
    "fast_dev_run": (False,),
}
# names become parts of paths
LONGEST_NAME = 100
NAME = re.compile(r"[\w][\w.+-]*", re.ASCII)


def check_config(cfg: Mapping[str, Any]) -> None:
    """Check every setting whose value can be checked on its own.

    Raises:
        InputError: A value is invalid.
    """
    if not cfg.get("policy"):
        raise InputError("policy=[] trains nothing: choose one or more policies")
    for group in GROUPS:
        if not isinstance(cfg.get(group), dict) and not (group == "logger" and cfg.get(group) is None):  # logger=[]
            raise InputError(f"{group}={cfg.get(group)} is not a group of settings: choose a file of conf/{group}")
    for key, check in CHECKS.items():
        if key in OF_SOME and key.partition(".")[2] not in cfg[key.partition(".")[0]]:
            continue
        value = _get(cfg, key)
        if value == "???":  # Hydra's mark for a mandatory value
            raise InputError(f"{key} is missing: set {key}=<value>")
        check(key, value)
    _check_finite("", cfg)
    _check_policies(cfg["policy"])
    _check_together(cfg)


def _check_finite(key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_finite(f"{key}.{name}" if key else str(name), entry)
    elif isinstance(value, list):
        for entry in value:
            _check_finite(key, entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key}={value} must be a finite number")


def _check_policies(policies: Mapping[str, Any]) -> None:
    for name, entry in policies.items():
        _name("policy", name)
        if not isinstance(entry, dict) or "_target_" not in entry:
            raise InputError(f"policy.{name}={entry} is not a policy: it needs a _target_")


def _check_together(cfg: Mapping[str, Any]) -> None:
    trainer, scheduler = cfg["trainer"], cfg["scheduler"]
    if scheduler["warmup_unit"] == "epoch" and scheduler["warmup"] >= trainer["max_epochs"]:
        raise InputError(
            f"scheduler.warmup={scheduler['warmup']} must be less than trainer.max_epochs={trainer['max_epochs']}"
        )
    for scope in as_list(cfg["search"].get("then") or []):
        if not re.fullmatch(r"top\d+", str(scope).strip()):
            raise InputError(
                f"search.then={scope} does not choose among trained blocks: choose top2, top3, ...; "
                "other scopes belong to block"
            )
    search, cells = str(cfg["search"].get("_target_")), cfg["sweeper"]["cells_per_job"]
    if cells is not None and search != EXHAUSTIVE:
        raise InputError(
            f"sweeper.cells_per_job={cells} divides a sweep between jobs, but a search compares its cells: leave null"
        )
    if cells is not None and (last := cfg["search"].get("then")) is not None:
        raise InputError(
            f"sweeper.cells_per_job={cells} divides a sweep between jobs, but search.then={last} needs all of its "
            "blocks: leave one of them null"
        )
    if cfg["data"].get("groups") is not None and cfg["data"].get("folds") is None:
        raise InputError("data.groups says which images share a fold: set data.folds as well, such as data.folds=5")
    check_trainer(trainer)
    if trainer["devices"] != 1 and not isinstance(trainer["devices"], list) and trainer.get("strategy") is None:
        raise InputError(f"trainer.devices={trainer['devices']}: to train one run on several devices, use trainer=ddp")


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Check that a trainer can train cells side by side, for whole epochs, each of which is validated.

    Args:
        trainer: Arguments of Lightning's trainer.

    Raises:
        InputError: It cannot, or does not.
    """
    if trainer.get("gradient_clip_val"):
        value = trainer["gradient_clip_val"]
        raise InputError(f"trainer.gradient_clip_val={value} does not reach the cells: use optimizer.clip_norm={value}")
    if trainer.get("overfit_batches"):
        raise InputError("trainer.overfit_batches does not fit our batches: use data.train_per_class")
    if trainer.get("accumulate_grad_batches", 1) != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} does not reach the cells: use a "
            "larger data.batch_size"
        )
    for key, values in WHOLE_EPOCHS.items():
        value = trainer.get(key, values[0])
        # to Lightning, a val_check_interval of 1.0 is an epoch, and of 1 a batch
        if not any(value == known and type(value) is type(known) for known in values):
            raise InputError(
                f"trainer.{key}={value} does not fit: cells train for trainer.max_epochs and are validated after each "
                "epoch; leave it out"
            )


def as_list(value: Any) -> list[Any]:
    """Return a value, or several, as a list."""
    return [value] if value is None or isinstance(value, (str, int, float)) else list(value)


def _get(cfg: Mapping[str, Any], key: str) -> Any:
    *groups, name = key.split(".")
    for group in groups:
        cfg = cfg.get(group) or {}
    return cfg.get(name)


def _whole(key: str, value: Any, least: int, *, most: int | None = None, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value} must be an integer of at least {least}" + (", or null" if optional else ""))
    if most is not None and value > most:
        raise InputError(f"{key}={value} is too large: choose {least} to {most}")


def _number(key: str, value: Any, *, zero: bool = False, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not is_number(value) or value < 0 or (value == 0 and not zero):
        valid = "a number of at least 0" if zero else "a number greater than 0"
        raise InputError(f"{key}={value} must be {valid}" + (", or null" if optional else ""))


def _share(key: str, value: Any) -> None:
    _number(key, value, optional=True)
    if value is not None and not LEAST_CROP <= value <= 1:
        raise InputError(f"{key}={value} must be between {LEAST_CROP} and 1, the whole image")


def _factor(key: str, value: Any) -> None:
    _number(key, value, optional=True)
    if value is not None and value > 1:
        raise InputError(f"{key}={value} must be at most 1")


def _rates(key: str, value: Any) -> None:
    rates = as_list(value)
    if not rates:
        raise InputError(f"{key}=[] trains nothing: give one or more learning rates")
    for rate in rates:
        _number(key, rate)
    if len({float(rate) for rate in rates}) < len(rates):
        raise InputError(f"{key}={rates} lists a learning rate twice")


def _choice(key: str, value: Any, choices: tuple[str, ...], *, optional: bool = False) -> None:
    if value not in choices and not (value is None and optional):
        raise InputError(f"{key}={value} is unknown: choose {' or '.join(choices)}.{did_you_mean(value, choices)}")


def _augment(key: str, value: Any) -> None:
    if not isinstance(value, (list, dict)):
        _choice(key, value, (*PRESETS, *(name for name in AUGMENTATIONS if name not in PRESETS)))
        return
    elements = value if isinstance(value, list) else [value]
    for element in elements:
        _augment_element(key, element)
    names = [element for element in elements if isinstance(element, str)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{key} lists {twice[0]} twice: each name is applied once")


def _augment_element(key: str, element: Any) -> None:
    if isinstance(element, dict):
        if not isinstance(element.get("_target_"), str):
            raise InputError(f"{key}: {element} has no _target_: name a transform, such as {TRANSFORM}")
    elif isinstance(element, list):
        raise InputError(f"{key} has a list in its list, {element}: write all names and transforms in one list")
    elif element in PRESETS and element not in AUGMENTATIONS:
        raise InputError(f"{key}: {element} is a preset and no part of a list: write {key}={element}")
    else:
        _choice(key, element, AUGMENTATIONS)


def _flag(key: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):  # None: the chosen config has no such setting
        raise InputError(f"{key}={value} must be true or false")


def _name(key: str, value: Any) -> None:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InputError(f"{key}={value} must be a name of letters, digits and . _ + -")
    if len(value) > LONGEST_NAME:
        raise InputError(f"{key} has {len(value)} characters: choose a name of at most {LONGEST_NAME}")


def _model_name(key: str, value: Any) -> None:
    if isinstance(value, str) and has_origin(value):
        check_origin(value)
    elif isinstance(value, str) and ":" in value:
        raise InputError(f"{key}={value} is unknown: write a name, hf-hub:<org>/<name> or local-dir:<folder>")
    else:
        _name(key, value)


def _text(key: str, value: Any, *, optional: bool = False) -> None:
    if not (isinstance(value, str) and value) and not (value is None and optional):
        raise InputError(f"{key}={value} must be text" + (", or null" if optional else ""))


def _folders(key: str, value: Any) -> None:
    if value == []:
        raise InputError(f"{key}=[] is not a folder: give one or more")
    for folder in value if isinstance(value, list) else [value]:
        _text(key, folder)


def _names(key: str, value: Any) -> None:
    if value is not None:
        for name in value if isinstance(value, list) else [value]:
            _text(key, name)


def _splits(key: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or "train" not in value or not value.keys() <= {"train", "val", "test"}:
        raise InputError(f"{key}={value} must name the splits: {{train: ..., val: ..., test: ...}}, or be null")
    for split, name in value.items():
        _text(f"{key}.{split}", name)
        if same := [other for other, its in value.items() if other != split and its == name]:
            raise InputError(f"{key}.{split} and {key}.{same[0]} are the same split, {name}: choose another one")


def _expression(key: str, value: Any) -> None:
    _text(key, value, optional=True)
    try:
        re.compile(value or "")
    except re.error as error:
        raise InputError(f"{key}={value} is not a regular expression ({error})") from error


def _version(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _text(key, value, optional=True)


def _channels(key: str, values: Any, *, positive: bool = False) -> None:
    if values is None:
        return
    numbers = isinstance(values, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
    if not numbers or len(values) != 3 or (positive and min(values) <= 0):
        kind = "numbers greater than 0" if positive else "numbers"
        raise InputError(f"{key}={values} must be three {kind}, one per channel, or null")


def _devices(key: str, devices: Any) -> None:
    number = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    if not number and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(f"{key}={devices} must be a number of devices, or a list with the index of one GPU")


def _strategy(key: str, strategy: Any) -> None:
    ours = isinstance(strategy, dict) and str(strategy.get("_target_")).endswith("SideBySideStrategy")
    if strategy is not None and not ours:
        raise InputError(
            f"{key}={strategy} cannot train cells side by side: choose trainer=ddp, in which several devices share "
            "each batch"
        )


# settings that only some configs of a group have, or that files from before they were there lack
LIMITS = tuple(f"trainer.limit_{split}_batches" for split in ("train", "val", "test"))
# a LightningDataModule makes its batches itself
OF_BATCHES = tuple(
    f"data.{key}"
    for key in "crop_pct batch_size augment num_workers skip_broken "
    "train_per_class val_per_class test_per_class".split()
)
OF_SOME = frozenset(
    {
        "optimizer.weight_decay",
        "data.root",
        *OF_BATCHES,
        "data.classes",
        "data.file",
        "data.images",
        "data.num_images",
        "data.path_column",
        "data.label_column",
        "data.image_column",
        "data.path",
        "data.config",
        "data.revision",
        "data.splits",
        "data.split_column",
        "data.url",
        "data.checksum",
        "data.mixup",
        "data.cutmix",
        "data.sampler",
        "data.split_seed",
        *LIMITS,
    }
)
CHECKS: dict[str, Callable[[str, Any], None]] = {
    "plan": _flag,
    "seed": partial(_whole, least=0, most=MAX_SEED),
    "results_dir": _text,
    "model.source": partial(_choice, choices=("timm", "torchvision")),
    "model.name": _model_name,
    "model.architecture": partial(_text, optional=True),
    "model.weights": partial(_text, optional=True),
    "model.checkpoint": partial(_text, optional=True),
    "model.pretrained": _flag,
    "model.input_size": partial(_whole, least=1, most=LARGEST_IMAGE, optional=True),
    "model.mean": _channels,
    "model.std": partial(_channels, positive=True),
    "model.interpolation": partial(_choice, choices=INTERPOLATIONS, optional=True),
    "model.crop_pct": _share,
    "model.options": check_options,
    "data.name": _name,
    **dict.fromkeys(LIMITS, _number),
    "data.root": _folders,
    "data.classes": _names,
    "data.num_classes": partial(_whole, least=2, optional=True),
    "data.version": _version,
    "data.source._target_": _text,
    "data.file": _text,
    "data.images": partial(_text, optional=True),
    "data.path_column": _text,
    "data.label_column": partial(_text, optional=True),
    "data.image_column": partial(_text, optional=True),
    "data.path": _text,
    "data.config": partial(_text, optional=True),
    "data.revision": partial(_text, optional=True),
    "data.splits": _splits,
    "data.split_column": partial(_text, optional=True),
    "data.url": partial(_text, optional=True),
    "data.checksum": partial(_text, optional=True),
    "data.num_images": partial(_whole, least=1, optional=True),
    "data.image_size": partial(_whole, least=1, most=LARGEST_IMAGE, optional=True),
    "data.crop_pct": _share,
    "data.batch_size": partial(_whole, least=2),
    "data.augment": _augment,
    "data.mixup": partial(_number, zero=True),
    "data.cutmix": partial(_number, zero=True),
    "data.sampler": partial(_choice, choices=SAMPLERS),
    "data.num_workers": partial(_whole, least=0, most=MOST_WORKERS),
    "data.skip_broken": _flag,
    "data.download": _flag,
    "data.train_per_class": partial(_whole, least=2, optional=True),
    "data.val_per_class": partial(_whole, least=1, optional=True),
    "data.test_per_class": partial(_whole, least=1, optional=True),
    "data.folds": partial(_whole, least=2, optional=True),
    "data.groups": _expression,
    "data.split_seed": partial(_whole, least=0, most=MAX_SEED, optional=True),
    "optimizer.lr": _rates,
    "optimizer.block_lr": partial(_number, optional=True),
    "optimizer.weight_decay": partial(_number, zero=True),
    "optimizer.nesterov": _flag,
    "optimizer.fused": _flag,
    "optimizer.layer_decay": _factor,
    "optimizer.no_decay": _flag,
    "optimizer.clip_norm": partial(_number, optional=True),
    "scheduler.warmup": partial(_number, zero=True),
    "scheduler.warmup_unit": partial(_choice, choices=UNITS),
    "scheduler.interval": partial(_choice, choices=UNITS),
    "search._target_": _text,
    "select_by": partial(_choice, choices=SELECTIONS),
    "model.head": partial(_choice, choices=HEADS),
    "freeze.norm": partial(_choice, choices=NORM_MODES),
    "early_stopping.patience": partial(_whole, least=1, optional=True),
    "sweeper.cells_per_job": partial(_whole, least=1, optional=True),
    "checkpoint.every_minutes": partial(_number, zero=True, optional=True),
    "cache.folder": partial(_text, optional=True),
    "cache.max_gb": partial(_number, zero=True),
    "cache.activations_gb": partial(_number, zero=True),
    "gpu.cells_at_once": partial(_whole, least=0),
    "gpu.images_gb": partial(_number, zero=True),
    "gpu.tf32": _flag,
    "trainer.max_epochs": partial(_whole, least=1),
    "trainer.precision": partial(_choice, choices=PRECISIONS),
    "trainer.devices": _devices,
    "trainer.strategy": _strategy,
}
