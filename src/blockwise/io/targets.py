"""Objects that a setting names by `_target_`: what goes wrong is one sentence."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import hydra

from blockwise.errors import InputError, did_you_mean, first_line


def instantiate(setting: str, entry: Mapping[str, Any]) -> Any:
    """Return the object that a mapping with `_target_` describes.

    Args:
        setting: Name of the setting, for messages.
        entry: The import path under `_target_`, and the arguments.

    Raises:
        InputError: There is no such class, or it does not take the arguments.
    """
    target = str(entry.get("_target_"))
    try:
        pkgutil.resolve_name(target)
    except Exception as error:  # imports raise whatever they like
        raise InputError(f"{setting}: there is no {target}{_suggestion(target)}") from error
    try:
        return hydra.utils.instantiate({"_convert_": "all", **entry})
    except Exception as error:  # so do classes
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(f"{setting}: {target} refuses its options ({first_line(error.__cause__ or error)})") from error


def _suggestion(target: str) -> str:
    """Return a similar name of a class's module, or why the module cannot be imported."""
    parent, _, name = target.rpartition(".")
    try:
        return "." + did_you_mean(name, dir(importlib.import_module(parent)))
    except Exception as reason:  # the module itself cannot be imported
        return f" ({first_line(reason.__cause__ or reason)})"
