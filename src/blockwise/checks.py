"""Numbers in a config that cannot be right, refused in one sentence before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from blockwise.data.datamodule import AUGMENTATIONS
from blockwise.data.decode import INTERPOLATIONS
from blockwise.errors import InputError, did_you_mean
from blockwise.freezing import NORM_MODES

# key -> the smallest whole number it takes, and whether it may be null
WHOLE = {
    "seed": (0, False),
    "data.batch_size": (2, False),
    "data.image_size": (1, True),
    "data.num_workers": (0, False),
    "data.train_per_class": (2, True),
    "data.val_per_class": (1, True),
    "data.test_per_class": (1, True),
    "trainer.max_epochs": (1, False),
    "early_stopping.patience": (1, True),
}
# key -> whether zero is allowed, and null
POSITIVE = {
    "optimizer.block_lr": (False, True),
    "optimizer.weight_decay": (True, False),
    "data.crop_pct": (False, True),
}


def check_config(cfg: Mapping[str, Any]) -> None:
    """Check the settings whose values can be judged by themselves.

    Raises:
        InputError: One of them is not what it must be.
    """
    for key, (least, optional) in WHOLE.items():
        _check_whole(key, _get(cfg, key), least, optional=optional)
    for key, (zero, optional) in POSITIVE.items():
        _check_number(key, _get(cfg, key), zero=zero, optional=optional)
    _check_rates(as_list(_get(cfg, "optimizer.lr")))
    _check_devices(_get(cfg, "trainer.devices"))
    _check_choice("freeze.norm", _get(cfg, "freeze.norm"), NORM_MODES)
    for name in as_list(_get(cfg, "data.augment")):
        _check_choice("data.augment", name, AUGMENTATIONS)
    if (crop := _get(cfg, "data.crop_pct")) is not None and crop > 1:
        raise InputError(f"data.crop_pct={crop} is larger than the image: choose a number above 0, at most 1")
    if (name := _get(cfg, "model.interpolation")) is not None:
        _check_choice("model.interpolation", name, tuple(INTERPOLATIONS))


def as_list(value: Any) -> list[Any]:
    """Return a list of values from one value or several."""
    return [value] if value is None or isinstance(value, (str, int, float)) else list(value)


def _get(cfg: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        cfg = cfg.get(part)  # type: ignore[assignment]
        if cfg is None:
            return None
    return cfg


def _check_rates(rates: list[Any]) -> None:
    if not rates:
        raise InputError("optimizer.lr=[] trains nothing: give a learning rate, or a list of them")
    for rate in rates:
        _check_number("optimizer.lr", rate, zero=False, optional=False)
    if len({float(rate) for rate in rates}) < len(rates):
        raise InputError(f"optimizer.lr={rates} names a learning rate twice: name each once")


def _check_devices(devices: Any) -> None:
    if devices != 1 and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(
            f"trainer.devices={devices}: a run uses one device, so give 1, or a list with the number of one GPU; "
            "several runs at a time share out several GPUs"
        )


def _check_whole(key: str, value: Any, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{key}={value} must be a whole number of at least {least}" + (", or null" if optional else "")
        )


def _check_number(key: str, value: Any, *, zero: bool, optional: bool) -> None:
    if value is None and optional:
        return
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if wrong or value < 0 or (value == 0 and not zero):
        valid = "a number of at least 0" if zero else "a number greater than 0"
        raise InputError(f"{key}={value} must be {valid}" + (", or null" if optional else ""))


def _check_choice(key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{key}={value} is unknown: choose {' or '.join(known)}.{did_you_mean(value, known)}")
