"""Argument checks of the Python API: invalid arguments raise an `InputError` before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blockwise.backbone.load import Backbone
from blockwise.backbone.makers.functions import drops_by_function
from blockwise.backbone.partition import Partition
from blockwise.config.checks import CHECKS
from blockwise.config.compose import compose_config, plain
from blockwise.config.compose import options as options_of
from blockwise.errors import InputError, did_you_mean
from blockwise.policies import POLICY_NAMES, Policy
from blockwise.recipe.build import make_policies, make_schedule, named_policies
from blockwise.recipe.parameter_groups import check_optimizer as check_step
from blockwise.recipe.recipe import Recipe
from blockwise.recipe.schedulers import Schedule
from blockwise.search import Search
from blockwise.study.searching import check_search, make_search


def check(key: str, name: str, value: Any) -> Any:
    """Check an argument by the rule of the setting `key`, and return it; numbers of NumPy become Python's own.

    Raises:
        InputError: The value is invalid.
    """
    value = as_plain(value)
    CHECKS[key](name, value)
    return value


def as_plain(value: Any) -> Any:
    """Return numbers of NumPy and PyTorch, one or several, and tuples as Python's own numbers and lists."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return [as_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def check_version(version: Any) -> Any:
    """Return a version of data as a text or a number.

    Raises:
        InputError: It is neither.
    """
    version = as_plain(version)
    if version is not None and not isinstance(version, (str, int, float)):
        raise InputError(f"data_version={version!r} must be a text or a number")
    return version


def check_options(options: Any) -> dict[str, Any]:
    """Check arguments for a network's builder, and return them as a dictionary.

    Raises:
        InputError: They are not names and values, or blockwise sets one of them itself.
    """
    options = dict(options) if isinstance(options, Mapping) else options
    CHECKS["model.options"]("options", options)
    return dict(options)


def check_rates(lr: Any) -> list[float]:
    """Return one or more learning rates as a list.

    Raises:
        InputError: A rate is not a number greater than 0, or is listed twice.
    """
    lr = as_plain(lr)
    values = [lr] if isinstance(lr, (Real, str)) or not isinstance(lr, Iterable) else list(lr)
    rates: list[Any] = [
        float(value) if isinstance(value, Real) and not isinstance(value, bool) else value for value in values
    ]
    CHECKS["optimizer.lr"]("lr", rates)
    return rates


def check_classes(classes: Any) -> list[str]:
    """Return the class names as a list of texts.

    Raises:
        InputError: There are fewer than two names, or a name is listed twice.
    """
    names = [] if isinstance(classes, str) or not isinstance(classes, Iterable) else [str(name) for name in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes={classes!r} must be a list of two or more different names")
    return names


def check_optimizer(optimizer: Any) -> None:
    """Check that the factory returns an optimizer when called with parameter groups.

    Raises:
        InputError: The call fails.
    """
    try:
        check_step(optimizer)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={optimizer!r} cannot be called with parameter groups ({error})") from error


def recipe(*, policy: Any, scheduler: Any, **options: Any) -> Recipe:
    """Return the recipe of a study in Python.

    Args:
        policy: Names of policies, a policy, or policies by name.
        scheduler: A name, a `Schedule`, or None.
        options: Further attributes of the recipe.

    Raises:
        InputError: There is no such policy or schedule.
    """
    if isinstance(scheduler, str):
        scheduler = make_schedule(settings_of("scheduler", scheduler))
    if scheduler is not None and not isinstance(scheduler, Schedule):
        raise InputError(f"scheduler={scheduler!r} must be a name or a blockwise.recipe.schedulers.Schedule")
    _check_callable("loss", options["loss"])
    return Recipe(policies=_policies(policy), scheduler=scheduler, **options)


def search(value: Any) -> Search:
    """Return the search of a study in Python, given its name or itself.

    Raises:
        InputError: There is no such search.
    """
    if isinstance(value, str):
        known = options_of("search")
        if value not in known:
            raise InputError(f"search={value} is unknown: choose {', '.join(known)}.{did_you_mean(value, known)}")
        return make_search(settings_of("search", value))
    check_search(value)
    return value


@cache
def settings_of(group: str, choice: str) -> dict[str, Any]:
    """Return the settings of a group for a choice of its configs."""
    found: dict[str, Any] = plain(compose_config([f"{group}={choice}"]))[group]
    return found


def _policies(policy: Any) -> dict[str, Policy]:
    if isinstance(policy, str) or (isinstance(policy, Sequence) and all(isinstance(name, str) for name in policy)):
        names = [policy] if isinstance(policy, str) else list(policy)
        known = options_of("policy")
        if wrong := [name for name in names if name not in known]:
            raise InputError(f"policy={wrong[0]} is unknown: choose {', '.join(known)}.{did_you_mean(wrong[0], known)}")
        return make_policies(settings_of("policy", f"[{','.join(names)}]")) if names else _no_policy()
    if isinstance(policy, Mapping) and policy:
        for name, own in policy.items():
            CHECKS["data.name"]("policy", name)
            _check_callable(f"policy={name}", own)
        return named_policies(policy)
    if callable(policy):
        _check_callable("policy", policy)
        return {POLICY_NAMES.get(type(policy)) or _own_name(policy): policy}
    return _no_policy()


def _own_name(policy: Any) -> str:
    name = str(getattr(policy, "__name__", type(policy).__name__))
    return name.lower() if name.isidentifier() else "own"


def _check_callable(name: str, value: Any) -> None:
    if isinstance(value, type) or not callable(value):
        raise InputError(f"{name}: {value!r} must be an object that can be called, not a class")


def _no_policy() -> dict[str, Policy]:
    raise InputError("policy must be a name, a policy, a list of names, or a dictionary of policies by name")


def check_network(network: nn.Module, size: int) -> nn.Module:
    """Run a network on two images, shape (2, 3, size, size), and return the network; warn if it has hidden dropout.

    Raises:
        InputError: The output does not have shape (images, features).
    """
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"the network cannot process images of {size} x {size} pixels ({error})") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        actual = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"the network must map images to features of shape (images, features), not {actual}")
    with torch.random.fork_rng(devices=[]):
        drops = drops_by_function(network, torch.zeros(2, 3, size, size))
    network.eval()
    if drops:
        warnings.warn(
            "the network drops values by a function, not by a layer such as torch.nn.Dropout: blockwise cannot switch "
            "it on for single blocks, so it stays off",
            stacklevel=3,
        )
    return network


def check_partition(backbone: Any, partition: Any) -> None:
    """Check that a partition was made from a backbone.

    Raises:
        InputError: It was made from another network.
    """
    if not isinstance(backbone, Backbone) or not isinstance(partition, Partition):
        raise InputError("pass a backbone from load_backbone and a partition from make_partition")
    own = {name for name, _ in backbone.network.named_parameters()}
    if {name for layer in partition.layers for name in layer.parameters} | partition.unused != own:
        raise InputError(f"the partition does not belong to {backbone.name}: make it with make_partition(backbone)")
