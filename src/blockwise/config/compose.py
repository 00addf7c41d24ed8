"""Composing configs, and explaining in one sentence why one does not compose."""

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
# a wheel carries the configs inside the package, a checkout has them at its root
CONFIG_DIR = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
CONFIG_NAME = "train"


def check_groups(overrides: list[str]) -> None:
    """Refuse a config group that is set to nothing; Hydra would answer with a traceback.

    Raises:
        InputError: One is.
    """
    groups = {entry.name for entry in CONFIG_DIR.iterdir() if entry.is_dir()}
    for override in overrides:
        group, _, value = override.partition("=")
        if group in groups and value in ("", "null"):
            raise InputError(f"{override} leaves out a group of settings: choose from {', '.join(options(group))}")


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose the config of a run from Python.

    Raises:
        InputError: An override names something that does not exist.
    """
    check_groups(overrides)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(CONFIG_NAME, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def options(group: str) -> list[str]:
    """Return the names that a config group takes."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if path.stem[0] != "_")


def explain(error: Exception) -> InputError:
    """Turn an error of Hydra about a command line into one sentence that suggests what was meant."""
    if isinstance(error.__cause__, InputError):  # raised by something that Hydra made
        return error.__cause__
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^'/]+)/([^']+?)'", text):
        group, name = match.groups()
        return InputError(_unknown_option(group, name))
    if match := re.search(r"Could not override '([^']+)'", text):
        key, known = match[1], settings()
        if key in known:
            return InputError(f"there is no setting {key} here: it belongs to another choice of {key.split('.')[0]}")
        return InputError(f"there is no setting {key}.{did_you_mean(key, known)}")
    if match := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return InputError(f"{match[1]} is missing: give it as {match[1]}=<value>")
    if "requires --multirun" in text or "Ambiguous value for argument" in text:
        shown = text.partition("'")[2].partition("'")[0]
        key = shown.partition("=")[0]
        return InputError(f"{shown} names several values: add -m to sweep over them, or write a list as {key}=[...]")
    return InputError(" ".join(text.split("\nSee https")[0].split()))


def settings() -> list[str]:
    """Return the dotted names of all settings of the default config, and its groups."""
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
    known = options(group)
    sentence = f"{group}={name} is unknown: choose from {', '.join(known)}.{did_you_mean(name, known)}"
    if group == "model":
        sentence += " Any other network is model=timm model.name=<name> or model=torchvision model.name=<name>."
    return sentence


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain dictionaries and lists, interpolations resolved."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
