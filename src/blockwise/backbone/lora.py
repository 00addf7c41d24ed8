"""Low-rank updates of weights (Hu et al., 2022, "LoRA: Low-Rank Adaptation of Large Language Models").

The weight of a layer stays frozen; a product of two small matrices, which is zero at first, is added to it and trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from blockwise.errors import InputError

FIRST, SECOND = ".lora_A.default.weight", ".lora_B.default.weight"


def adaptable(network: nn.Module, parameters: Collection[str]) -> list[str]:
    """Return the paths of the layers that can have a low-rank update, given the names of parameters.

    These are linear layers and convolutions without groups. Subclasses are left out, since they may compute something
    else.
    """
    paths = [name.removesuffix(".weight") for name in sorted(parameters) if name.endswith(".weight")]
    return [path for path in paths if _fits(network.get_submodule(path))]


def highest_rank(network: nn.Module, parameters: Collection[str]) -> int:
    """Return the highest rank that a weight of these layers can have; 0 if there is no layer to adapt."""
    weights = (network.get_parameter(f"{path}.weight") for path in adaptable(network, parameters))
    return max((min(len(weight), weight[0].numel()) for weight in weights), default=0)


def num_updates(network: nn.Module, parameters: Collection[str], rank: int) -> int:
    """Return the number of parameters of the low-rank updates."""
    weights = (network.get_parameter(f"{path}.weight") for path in adaptable(network, parameters))
    return sum(rank * (weight[0].numel() + len(weight)) for weight in weights)


def _fits(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    )


def add_lora(module: nn.Module, parameters: Collection[str], rank: int, seed: int) -> None:
    """Add low-rank updates to layers of a module, in place; they train, everything else is frozen.

    Args:
        module: The module.
        parameters: Names of the parameters that may get an update.
        rank: Rank of the updates; they are not scaled.
        seed: Seed of the first matrices; the second ones are zero.

    Raises:
        InputError: The package `peft` is not installed.
    """
    check_installed(rank)
    from peft import LoraConfig, inject_adapter_in_model

    paths = adaptable(module, parameters)
    module.requires_grad_(requires_grad=False)
    if not paths:
        return
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, paths)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, module)


def check_installed(rank: int | None) -> None:
    """Check that the package `peft` is installed.

    Raises:
        InputError: It is not.
    """
    if find_spec("peft") is None:
        raise InputError(f"block=lora{rank} needs a package that is not installed: pip install 'blockwise[lora]'")


def merge_lora(weights: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return trained tensors with low-rank updates added to the pretrained weights.

    Args:
        weights: The backbone's weights by name.
        trained: Trained tensors by name.

    Raises:
        KeyError: The backbone has no such layer.
    """
    merged = {name: tensor for name, tensor in trained.items() if not name.endswith((FIRST, SECOND))}
    for name, first in trained.items():
        if name.endswith(FIRST):
            layer = name.removesuffix(FIRST)
            weight = weights[f"{layer}.weight"]
            update = trained[layer + SECOND].flatten(1) @ first.flatten(1)
            merged[f"{layer}.weight"] = weight + update.view_as(weight)
    return merged
