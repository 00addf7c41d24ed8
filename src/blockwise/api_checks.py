"""Checks of the Python API's arguments: an invalid one is refused in one sentence before anything trains."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from blockwise.backbone.load import Backbone
from blockwise.backbone.partition import Partition
from blockwise.config.checks import CHECKS
from blockwise.errors import InputError


def check(key: str, name: str, value: Any) -> Any:
    """Check an argument like the setting `key`, and return it; an integer of NumPy becomes one of Python.

    Raises:
        InputError: It is invalid.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
    CHECKS[key](name, value)
    return value


def check_rates(lr: Any) -> list[float]:
    """Return a learning rate, or several, as a list.

    Raises:
        InputError: One is no number greater than 0, or is named twice.
    """
    values = [lr] if isinstance(lr, (Real, str)) or not isinstance(lr, Iterable) else list(lr)
    rates: list[Any] = [
        float(value) if isinstance(value, Real) and not isinstance(value, bool) else value for value in values
    ]
    CHECKS["optimizer.lr"]("lr", rates)
    return rates


def check_classes(classes: Any) -> list[str]:
    """Return the names of the classes.

    Raises:
        InputError: They are not two or more different names.
    """
    names = [] if isinstance(classes, str) or not isinstance(classes, Iterable) else [str(name) for name in classes]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"classes={classes!r} must be a list of two or more names, each of them once")
    return names


def check_optimizer(optimizer: Any) -> None:
    """Check that an optimizer can be made.

    Raises:
        InputError: It cannot.
    """
    try:
        optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}])
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={optimizer!r} makes no optimizer of parameter groups ({error})") from error


def check_network(network: nn.Module, size: int) -> nn.Module:
    """Run a network on images of a size, and return it.

    Raises:
        InputError: It does not map them to a vector of features each.
    """
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"the network does not take images of {size} pixels ({error})") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"the network must map images to features of shape (images, features), not {given}")
    return network


def check_partition(backbone: Any, partition: Any) -> None:
    """Check that a partition belongs to a backbone.

    Raises:
        InputError: It does not.
    """
    if not isinstance(backbone, Backbone) or not isinstance(partition, Partition):
        raise InputError("give what load_backbone and make_partition have returned")
    own = {name for name, _ in backbone.network.named_parameters()}
    if {name for layer in partition.layers for name in layer.parameters} != own:
        raise InputError(f"the partition is not of {backbone.name}: make it with make_partition(backbone)")
