"""What trains in a block: all of it, its norms, its biases, or low-rank updates of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from blockwise.backbone.lora import adaptable, check_installed, highest_rank, num_updates
from blockwise.backbone.partition import Partition
from blockwise.errors import InputError
from blockwise.training.scopes import Part, Scope

# what a message calls the part of a block
NAMES = {"norms": "norms", "bias": "biases", "lora": "convolutions without groups or linear layers"}


@dataclass(frozen=True)
class Trainable:
    """What trains in one block.

    Attributes:
        parameters: Names of the parameters.
        layers: Names of the layers in training mode; all others stay in inference mode.
    """

    parameters: frozenset[str]
    layers: frozenset[str]


def trainable(partition: Partition, block: int, part: Part) -> Trainable:
    """Return what trains in a block; of `lora`, the parameters whose updates train.

    `norms`: Frankle et al. (2021), "Training BatchNorm and Only BatchNorm". `bias`: Ben Zaken et al. (2022), "BitFit";
    running statistics of norms are no biases and stay as they are. `lora`: Hu et al. (2022), "LoRA".
    """
    layers = partition.layers_of(block)
    if part == "norms":
        layers = tuple(layer for layer in layers if layer.kind == "norm")
    names = [name for layer in layers for name in layer.parameters]
    if part == "bias":
        names = [name for name in names if name.rpartition(".")[2].endswith("bias")]
    in_training = [layer.name for layer in layers] if part in ("all", "norms") else []
    return Trainable(frozenset(names), frozenset(in_training))


def num_trainable(scope: Scope, partition: Partition, network: nn.Module) -> int:
    """Return the number of parameters that a scope trains, without the head's."""
    names = {name for block in scope.blocks for name in trainable(partition, block, scope.part).parameters}
    if scope.part == "lora":
        return num_updates(network, names, scope.rank or 1)
    return sum(parameter.numel() for name, parameter in network.named_parameters() if name in names)


def check_scope(scope: Scope, partition: Partition, network: nn.Module, backbone: str) -> None:
    """Check that the blocks of a scope have what it trains.

    Raises:
        InputError: They do not, or the package for low-rank updates is missing.
    """
    if scope.part == "all" or not scope.blocks:
        return
    if scope.part == "lora":
        check_installed(scope.rank)
    names = {name for block in scope.blocks for name in trainable(partition, block, scope.part).parameters}
    if scope.part == "lora" and (scope.rank or 0) > (most := highest_rank(network, names)) > 0:
        raise InputError(f"block={scope.name}: choose a rank of at most {most}, the highest of these layers")
    if not (adaptable(network, names) if scope.part == "lora" else names):
        raise InputError(f"block={scope.name}: these blocks of {backbone} have no {NAMES[scope.part]} to train")
