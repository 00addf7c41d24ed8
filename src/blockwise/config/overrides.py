"""Checks of the command line's settings that Hydra would answer with an error of its parser, or accept in silence."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from blockwise.errors import InputError, did_you_mean
from blockwise.io.names import printable

KEY = re.compile(r"(\+\+|\+|~)?[A-Za-z_][\w./@:-]*")
# settings that are arguments of a class, which refuses those that it does not know
EXTENSIBLE = tuple(
    "optimizer. scheduler. loss. search. policy. trainer. partition. logger. model.options. data.source. hydra. "
    "hydra/".split()
)


def check_overrides(overrides: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Check the settings of a command line one by one, before they are composed.

    Args:
        overrides: Settings; options, which start with a dash, are skipped.
        groups: The names of each group's configs.

    Raises:
        InputError: A setting cannot be parsed, has no value or is removed, or a group is set to null.
    """
    for override in overrides:
        if override.startswith("-"):
            continue
        key, equals, value = override.partition("=")
        shown = printable(override)
        if key in groups and (not equals or value.lower() in ("", "null")):
            raise InputError(f"{override} chooses no config: choose from {', '.join(groups[key])}")
        if not KEY.fullmatch(key):
            raise InputError(f"{shown} cannot be read: {key!r} is not the name of a setting")
        if key.startswith("~") and not key[1:].startswith(EXTENSIBLE):
            raise InputError(f"{shown} removes a setting that is needed: give it another value instead")
        if not equals and not key.startswith("~"):
            raise InputError(f"{override} has no value: write {override}=<value>")
        if equals and not value:
            raise InputError(
                f"{override} has no value: is a variable of your shell unset? For an empty text, write '{key}=\"\"'"
            )
        parsed = _parse(override)
        if parsed is None:
            raise InputError(f"{shown} cannot be read{_quoted(key, value)}")
        _check_choice(parsed, groups)


def check_added(overrides: Sequence[str], cfg: DictConfig, known: Sequence[str]) -> None:
    """Check that what `+` adds is a setting that something reads.

    Args:
        overrides: Settings of a command line.
        cfg: The config composed from them.
        known: Names of all settings, for suggestions.

    Raises:
        InputError: Nothing reads a setting.
    """
    for override in overrides:
        if not override.startswith("+") or (parsed := _parse(override)) is None:
            continue
        key = parsed.get_key_element().lstrip("+")
        chosen = "." not in key and key not in cfg  # a group of configs, such as +study=mine
        entries = "." in key and f"{key}." in EXTENSIBLE  # several at once, such as +model.options={a: 1}
        if not (chosen or entries or key.startswith(EXTENSIBLE)):
            raise InputError(f"there is no setting {key}.{did_you_mean(key, known)}")


def quoted(value: str) -> str:
    r"""Return a text in quotes, as Hydra reads it back.

    >>> print(quoted('a "b"'))
    "a \"b\""
    """
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + (match[2] and f"\\{match[2]}"), value)
    return f'"{escaped}"'


def _check_choice(override: Override, groups: Mapping[str, Sequence[str]]) -> None:
    group = override.key_or_group
    value = override.value()
    names = value if isinstance(value, list) else [value]
    known = group in groups or group.startswith("hydra/")
    # Hydra expects text, and null to choose none
    if known and any(isinstance(name, (int, float, dict, list)) or (name is None and name != value) for name in names):
        raise InputError(f"{printable(override.input_line or group)} chooses no config: write the name of one")


def _parse(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, RecursionError, ValueError):  # Python refuses numbers of thousands of digits
        return None


def _quoted(key: str, value: str) -> str:
    """Return which quotes to put around a value so that both shell and Hydra pass it on."""
    if printable(value) != value:  # shown, it would be another value
        return ""
    for quote in ('"', "'"):
        escaped = value.replace(quote, f"\\{quote}")
        candidate = f"{key}={quote}{escaped}{quote}"
        if (parsed := _parse(candidate)) is not None and _text(parsed) == value:
            return f": quote its value twice, for Hydra and for the shell: {shlex.quote(candidate)}"
    return ""


def _text(override: Override) -> Any:
    value = override.value()
    return getattr(value, "text", value) if not isinstance(value, str) else value
