"""Compose configs, and turn Hydra's errors into one sentence for the user."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from blockwise.config.overrides import check_added, check_overrides
from blockwise.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parents[1]
# a wheel has the configs inside the package, a checkout has them at its root
CONFIG_DIR = next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir())
CONFIG_NAME = "train"


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose the config of a run.

    Args:
        overrides: Settings as on the command line.

    Raises:
        InputError: An override names a setting or a config that does not exist.
    """
    check_overrides(overrides, groups())
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            cfg = compose(CONFIG_NAME, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    check_added(overrides, cfg, settings())
    return cfg


def groups() -> dict[str, list[str]]:
    """Return the names of each group's configs."""
    return {entry.name: options(entry.name) for entry in CONFIG_DIR.iterdir() if entry.is_dir()}


def options(group: str) -> list[str]:
    """Return the names of the configs in a group."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if path.stem[0] != "_")


def explain(error: Exception) -> InputError:
    """Turn Hydra's error about a command line into an `InputError` with one sentence and a suggestion."""
    if isinstance(error.__cause__, InputError):  # raised by an object that Hydra instantiated
        return error.__cause__
    text = str(error)
    if match := re.search(r"(Could not override '|Error merging override )(model\.options[\w.]*)", text):
        return InputError(_unread_options(match[2], new=match[1].startswith("Could")))
    if match := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        group, name = match.groups()
        return InputError(_unknown_option(group, name))
    if match := re.search(r"Could not override '([^']+)'", text):
        return InputError(_unknown_setting(match[1]))
    if match := re.search(r"Multiple values for (\w+)", text):
        return InputError(f"{match[1]} is chosen twice: write {match[1]}=<name> once, without +")
    if match := re.search(r"Error merging override (\S+?)=(\{.*)", text):
        key, value = match.groups()
        return InputError(f"{key}={value} is a mapping in place of a list: write {key}=[{value}]")
    if match := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return InputError(f"{match[1]} is missing: set {match[1]}=<value>")
    if "requires --multirun" in text or "Ambiguous value for argument" in text:
        return InputError(_several_values(text.partition("'")[2].partition("'")[0]))
    return InputError(" ".join(text.split("\nSee https")[0].split()))


def _unknown_setting(key: str) -> str:
    choices = settings()
    if key.startswith("policy.") and (name := key.split(".")[1]) in options("policy"):
        return f"{key} belongs to policy={name}: choose it, or several side by side, as in policy=[static,{name}]"
    if key in choices:
        return f"there is no setting {key} here: it belongs to another config of the group {key.split('.')[0]}"
    return f"there is no setting {key}.{did_you_mean(key, choices)}"


def _several_values(override: str) -> str:
    key, _, value = override.partition("=")
    sentence = f"{override} has several values: add -m to sweep over them, or write a list, {key}=[...]"
    if re.match(r"\w+\(", value):  # such as range(0,12)
        return sentence
    return f"{sentence}; a comma inside one value needs quotes: '{key}=\"{value}\"'"


def settings() -> tuple[str, ...]:
    """Return the dotted names of all groups and settings of the default config."""
    return tuple(defaults())


@cache
def defaults() -> dict[str, Any]:
    """Return the groups and settings of the default config by their dotted names."""
    found: dict[str, Any] = {}

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                found[f"{prefix}{key}"] = value
                walk(value, f"{prefix}{key}.")

    # unlike `compose`, this also works while Hydra runs
    loader = ConfigLoaderImpl(create_config_search_path(str(CONFIG_DIR)))
    cfg = loader.load_configuration(CONFIG_NAME, [], RunMode.RUN)
    OmegaConf.set_struct(cfg, False)  # noqa: FBT003 (OmegaConf's own)
    del cfg["hydra"]
    walk(OmegaConf.to_container(cfg), "")
    return found


def _unread_options(key: str, *, new: bool) -> str:
    """Return why Hydra does not take `model.options`: there is no such entry yet, or it is no dictionary."""
    if new:
        return f"{key} adds to the options of this model: write +{key}=<value>, with a plus"
    return f"{key} must be names and values, such as model.options={{drop_path_rate: 0.1}}"


def _unknown_option(group: str, name: str) -> str:
    choices = options(group)
    sentence = f"{group}={name} is unknown: choose from {', '.join(choices)}.{did_you_mean(name, choices)}"
    if group == "model":
        sentence += " For any other network, use model=timm model.name=<name> or model=torchvision model.name=<name>."
    return sentence


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain dictionaries and lists, with interpolations resolved.

    Raises:
        InputError: A setting refers to itself, or to one that does not exist.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
    except RecursionError as error:
        raise InputError("a setting refers to itself by ${...}: write its value instead") from error
    except InterpolationResolutionError as error:
        reason = str(error).split("\n")[0]
        if "MissingMandatoryValue" in reason:
            raise explain(error) from error
        raise InputError(
            f"{error.full_key} cannot be resolved ({reason}): write a value instead of ${{...}}"
        ) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
