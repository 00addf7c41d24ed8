"""Compose configs, and turn Hydra's errors into one sentence for the user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blockwise.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parents[1]
# a wheel has the configs inside the package, a checkout has them at its root
CONFIG_DIR = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
CONFIG_NAME = "train"


def check_groups(overrides: list[str]) -> None:
    """Check that no config group is set to an empty value, for which Hydra would print a traceback.

    Raises:
        InputError: A group is set to an empty value.
    """
    groups = {entry.name for entry in CONFIG_DIR.iterdir() if entry.is_dir()}
    for override in overrides:
        group, _, value = override.partition("=")
        if group in groups and value in ("", "null"):
            raise InputError(f"{override} chooses no config: choose from {', '.join(options(group))}")


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose the config of a run.

    Args:
        overrides: Settings as on the command line.

    Raises:
        InputError: An override names a setting or a config that does not exist.
    """
    check_groups(overrides)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(CONFIG_NAME, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def options(group: str) -> list[str]:
    """Return the names of the configs in a group."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if path.stem[0] != "_")


def explain(error: Exception) -> InputError:
    """Turn Hydra's error about a command line into an `InputError` with one sentence and a suggestion."""
    if isinstance(error.__cause__, InputError):  # raised by an object that Hydra instantiated
        return error.__cause__
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^'/]+)/([^']+?)'", text):
        group, name = match.groups()
        return InputError(_unknown_option(group, name))
    if match := re.search(r"Could not override '([^']+)'", text):
        key, choices = match[1], settings()
        if key in choices:
            group = key.split(".")[0]
            return InputError(f"there is no setting {key} here: it belongs to another config of the group {group}")
        return InputError(f"there is no setting {key}.{did_you_mean(key, choices)}")
    if match := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return InputError(f"{match[1]} is missing: set {match[1]}=<value>")
    if "requires --multirun" in text or "Ambiguous value for argument" in text:
        shown = text.partition("'")[2].partition("'")[0]
        key = shown.partition("=")[0]
        return InputError(f"{shown} has several values: add -m to sweep over them, or write a list, {key}=[...]")
    return InputError(" ".join(text.split("\nSee https")[0].split()))


def settings() -> list[str]:
    """Return the dotted names of all groups and settings of the default config."""
    names: list[str] = []

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                names.append(f"{prefix}{key}")
                walk(value, f"{prefix}{key}.")

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        walk(OmegaConf.to_container(compose(CONFIG_NAME)), "")
    return names


def _unknown_option(group: str, name: str) -> str:
    choices = options(group)
    sentence = f"{group}={name} is unknown: choose from {', '.join(choices)}.{did_you_mean(name, choices)}"
    if group == "model":
        sentence += " For any other network, use model=timm model.name=<name> or model=torchvision model.name=<name>."
    return sentence


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain dictionaries and lists, with interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
