"""`model.options`: arguments that reach the builder of timm or torchvision."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from blockwise.backbone.makers.functions import drops_by_function
from blockwise.errors import InputError, did_you_mean
from blockwise.io.model_options import check_options
from blockwise.io.names import printable

UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")
Build = Callable[[Mapping[str, Any]], nn.Module]


def given_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a `model` config as plain values; null values count as not given.

    Raises:
        InputError: They are not names and values, or blockwise sets one of them itself.
    """
    options: Any = model.get("options")
    options = OmegaConf.to_container(options, resolve=True) if OmegaConf.is_config(options) else options
    check_options("model.options", options)
    return {name: value for name, value in (options or {}).items() if value is not None}


def check_accepted(build: Build, name: str, options: Mapping[str, Any]) -> None:
    """Check that a builder takes options. If it does not, they are tried one by one to find the one that it refuses.

    Raises:
        InputError: The builder refuses an option.
    """
    error = refusal(build, options)
    if error is None or refusal(build, {}) is not None:  # the network has another fault
        return
    refused = [key for key, value in options.items() if refusal(build, {key: value}) is not None][:1]
    error = (refusal(build, {refused[0]: options[refused[0]]}) if refused else None) or error
    unknown = UNKNOWN.search(str(error))
    if unknown is not None and unknown[1] in options:
        similar = did_you_mean(unknown[1], _arguments(build))
        raise InputError(f"model.options.{unknown[1]} is unknown: {name} has no such argument.{similar}") from error
    values = ", ".join(f"model.options.{key}={options[key]}" for key in refused or options)
    reason = " ".join(str(error).split())[:300] or "no message"
    raise InputError(printable(f"{values} does not fit {name} ({type(error).__name__}: {reason})")) from error


def check_effective(build: Build, name: str, options: Mapping[str, Any], size: int) -> None:
    """Check that options switch on no dropout that blockwise would leave switched off without a word.

    Raises:
        InputError: They do.
    """
    drops = False
    with torch.random.fork_rng(devices=[]), torch.device("meta"), suppress(Exception):
        images = torch.zeros(2, 3, size, size)
        drops = drops_by_function(build(options), images) and not drops_by_function(build({}), images)
    if not drops:
        return
    values = ", ".join(f"model.options.{key}={value}" for key, value in options.items())
    raise InputError(
        f"{printable(values)}: {name} drops values by a function, not by a layer, which blockwise cannot switch on for "
        "single blocks; choose an option that drops by layers, such as drop_path_rate"
    )


def refusal(build: Build, options: Mapping[str, Any]) -> Exception | None:
    """Return the error of a builder; None if it makes the network, without memory for its weights if possible."""
    refusal: Exception | None = None
    for device in ("meta", "cpu"):
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                build(options)
        except Exception as error:
            refusal = error
            if UNKNOWN.search(str(error)):  # so it is on any device
                break
        else:
            return None
    return refusal


def _arguments(build: Build) -> list[str]:
    """Return the names of the arguments of a network's class."""
    return list(inspect.signature(type(build({})).__init__).parameters)[1:]
