"""Build a recipe from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockwise.errors import InputError
from blockwise.io.targets import instantiate
from blockwise.policies import STATIC, Policy, Static
from blockwise.recipe.recipe import Loss, Recipe
from blockwise.recipe.schedulers import Schedule, constant

# settings of a schedule that are not arguments of its scheduler
LENGTHS = ("warmup", "warmup_unit", "interval")


def make_recipe(cfg: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a config, given as plain data.

    Raises:
        InputError: A part refuses its settings.
    """
    optimizer = cfg["optimizer"]
    return Recipe(
        policies=make_policies(cfg["policy"]),
        loss=make_loss(cfg["loss"]),
        select_by=cfg["select_by"],
        # a file of your own may lack these
        block_lr=optimizer.get("block_lr"),
        layer_decay=optimizer.get("layer_decay"),
        no_decay=bool(optimizer.get("no_decay")),
        clip_norm=optimizer.get("clip_norm"),
        scheduler=make_schedule(cfg["scheduler"]),
        norm=cfg["freeze"]["norm"],
        patience=cfg["early_stopping"]["patience"],
    )


def make_policies(settings: Mapping[str, Any]) -> dict[str, Policy]:
    """Return the policies of a config by their names.

    Raises:
        InputError: A policy refuses its settings.
    """
    return named_policies({name: instantiate(f"policy={name}", entry) for name, entry in settings.items()})


def named_policies(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Return policies by name, after checking that `static` means what it says.

    Raises:
        InputError: Another policy is called static, or static is called something else.
    """
    for name, policy in policies.items():
        if (name == STATIC) != isinstance(policy, Static):
            raise InputError(f"policy={name}: the name {STATIC} is for blockwise.policies.Static, and it has no other")
    return dict(policies)


def make_loss(settings: Mapping[str, Any]) -> Loss:
    """Return the loss of a config; null settings count as not given, since the command line cannot remove them.

    Raises:
        InputError: The loss refuses its settings.
    """
    if settings.get("_target_") is None:
        raise InputError("the loss needs a _target_: choose loss=cross_entropy, loss=focal, or a class of your own")
    loss: Loss = instantiate("loss", {key: value for key, value in settings.items() if value is not None})
    return loss


def make_schedule(settings: Mapping[str, Any]) -> Schedule | None:
    """Return the learning rate schedule of a config; None if the rates are constant.

    Raises:
        InputError: The schedule refuses its settings.
    """
    options = {key: value for key, value in settings.items() if key not in LENGTHS}
    make = instantiate("scheduler", {**options, "_partial_": True})
    if make.func is constant and not settings["warmup"]:
        return None
    return Schedule(make, **{key: settings[key] for key in LENGTHS})
