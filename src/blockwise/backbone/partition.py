"""Partitions: the layers of a backbone, grouped into blocks, and what all partitioners share.

A partitioner is a small class with a name and a `blocks` method. To add one, write the class and a YAML file in
`conf/partition/`. `layer`, `segment` and `window` come from Barakat & Huang (2023). Their fourth method, training the
best-ranked blocks jointly, is the scope `top3`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.errors import InputError, check_whole

Weight = Literal["layers", "parameters", "flops"]


@dataclass(frozen=True)
class Block:
    """Layers `first` to `last` (inclusive) of a backbone, trained together."""

    index: int
    first: int
    last: int


@dataclass(frozen=True)
class Partition:
    """The ordered blocks of one backbone, input side first.

    Attributes:
        name: Name of the partitioner.
        layers: All layers of the backbone.
        blocks: The blocks. They may overlap (`window`); together they contain every parameter.
        rules: 2 if the first versions cut this network at other layers, although with the same options.
        head: The layers of the architecture's own head, which are in no block; see `split_head`.
        unused: Parameters of the network that these layers do not use.
        options: Options of the partitioner that `auto` chose; None if the partitioner is the config's.
        reason: Why `auto` chose the partitioner.
    """

    name: str
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    rules: int = 1
    head: tuple[Layer, ...] = ()
    unused: frozenset[str] = frozenset()
    options: Mapping[str, Any] | None = None
    reason: str = ""

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def cuts(self) -> list[int]:
        """Indices of the layers at which a stage begins: all block edges, including 0."""
        edges = {block.first for block in self.blocks} | {block.last + 1 for block in self.blocks}
        return sorted(edges - {len(self.layers)})

    def stages_of(self, block: int) -> range:
        """Return the indices of the stages that make up a block."""
        first, last = self.blocks[block].first, self.blocks[block].last
        inside = [stage for stage, cut in enumerate(self.cuts) if first <= cut <= last]
        return range(inside[0], inside[-1] + 1)

    def layers_of(self, block: int) -> tuple[Layer, ...]:
        """Return the layers of a block."""
        return self.layers[self.blocks[block].first : self.blocks[block].last + 1]

    def quarter(self, block: int) -> int:
        """Return the quarter of the network that contains the middle of a block, 1 (input) to 4, by weighted layers."""
        units = unit_starts(self.layers)
        first, last = self.blocks[block].first, self.blocks[block].last
        inside = [depth for depth, start in enumerate(units) if first <= start <= last]
        middle = (inside[0] + inside[-1] + 1) / 2
        return min(4, 1 + int(4 * middle / len(units)))


class BlockPartitioner(ABC):
    """Base class of partitioners, which group the ordered layers of a network into blocks."""

    name: ClassVar[str]

    @abstractmethod
    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the indices of the first and last layer of each block, input side first."""

    def __call__(self, layers: Sequence[Layer], network: nn.Module) -> Partition:
        """Partition a network, given its recorded layers.

        Raises:
            InputError: The options do not fit this network, or it has no parameters.
        """
        if not any(layer.num_parameters for layer in layers):
            raise InputError("the backbone executes no layer with parameters: there is nothing to fine-tune")
        spans = self.blocks(layers, network)
        blocks = tuple(Block(index, first, last) for index, (first, last) in enumerate(spans))
        used = {name for layer in layers for name in layer.parameters}
        unused = frozenset(name for name, _ in network.named_parameters() if name not in used)
        return Partition(self.name, tuple(layers), blocks, self.rules(layers, network), unused=unused)

    def options(self) -> dict[str, Any]:
        """Return the options, as in `conf/partition/`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def rules(self, layers: Sequence[Layer], network: nn.Module) -> int:
        """Return 2 if the first versions cut this network at other layers, else 1; records keep them apart."""
        del network
        return 2 if any(layer.revised for layer in layers) else 1


def split_head(layers: Sequence[Layer]) -> int:
    """Return the index of the first layer of the architecture's own head: weighted layers on vectors, not on maps.

    Examples are the two linear layers of VGG in front of the classifier, and the last convolution of MobileNetV3. The
    classifier itself is none of the layers. If there is no such layer, the index is the number of layers.
    """
    first = len(layers)
    for start in reversed(unit_starts(layers)[1:]):
        outputs = [layer for layer in layers[start:first] if layer.kind not in ("pool", "other")]
        if layers[start].beside or any(prod(layer.output_size) not in layer.output_size for layer in outputs):
            break
        first = start
    return first


def partition_network(
    partitioner: BlockPartitioner, layers: Sequence[Layer], network: nn.Module, head: str = "linear"
) -> Partition:
    """Partition a network; with the head `own`, the layers of the architecture's own head are in no block.

    Raises:
        InputError: The partitioner's options do not fit the network.
    """
    end = split_head(layers) if head == "own" else len(layers)
    return replace(partitioner(layers[:end], network), head=tuple(layers[end:]))


def unit_starts(layers: Sequence[Layer]) -> list[int]:
    """Return the layers at which a block may begin: weighted layers that are not joined to the layer before them."""
    starts = [layer.index for layer in layers if layer.kind in ("weighted", "norm", "scale") and not layer.joined]
    return [0, *starts[1:]]


def spans_from(starts: Sequence[int], end: int) -> list[tuple[int, int]]:
    """Turn the starts of adjacent runs of layers into pairs of first and last layer."""
    return [(first, following - 1) for first, following in pairwise([*starts, end])]


def merge(starts: Sequence[int], layers: Sequence[Layer], num: int, balance: Weight, what: str) -> list[int]:
    """Merge adjacent runs of layers into `num` runs of nearly equal weight.

    Dynamic programming minimizes the sum of squared weights over all ways to cut the ordered list, so the result is
    optimal and not a greedy approximation.

    Args:
        starts: First layer of each run.
        layers: All layers.
        num: Number of runs after merging.
        balance: Weight of a layer: 1 per weighted layer, its parameters, or its FLOPs.
        what: Name of the runs in messages.

    Raises:
        InputError: `num` is not an integer from 1 to the number of runs.
    """
    if isinstance(num, bool) or not isinstance(num, int) or not 1 <= num <= len(starts):
        most = len(starts)
        has, range_ = (f"{most} {what}", f"1 to {most}") if most > 1 else (f"1 {what.removesuffix('s')}", "1")
        every = f", or null to keep every {what[:-1]}" if most > 1 and what in ("segments", "units") else ""
        raise InputError(f"partition.num_blocks={num} does not fit: the backbone has {has}, so choose {range_}{every}")
    weights = [sum(_weight(layer, balance) for layer in layers[a : b + 1]) for a, b in spans_from(starts, len(layers))]
    sums = np.concatenate([[0.0], np.cumsum(weights, dtype=float)])
    sums /= max(sums[-1], 1.0)
    runs = len(starts)
    cost = np.full(runs + 1, np.inf)
    cost[0] = 0.0
    choices = []
    for _ in range(num):
        # candidates[j, i]: cost of the best cut of the first i runs, with runs i..j-1 as one more block
        candidates = np.where(np.tri(runs + 1, k=-1) > 0, cost + (sums[:, None] - sums) ** 2, np.inf)
        choices.append(candidates.argmin(axis=1))
        cost = candidates.min(axis=1)
    cuts, position = [], runs
    for choice in reversed(choices):
        position = int(choice[position])
        cuts.append(starts[position])
    return cuts[::-1]


def _weight(layer: Layer, balance: Weight) -> float:
    if balance == "layers":
        return float(layer.kind == "weighted")
    return float(layer.num_parameters if balance == "parameters" else layer.flops)


def one_of(key: str, value: Any, choices: Sequence[str]) -> Any:
    """Return a setting that must be one of some words.

    Raises:
        InputError: It is not.
    """
    if value not in choices:
        raise InputError(f"{key}={value} is unknown: choose {' or '.join(choices)}")
    return value


def at_least_one(key: str, value: int) -> int:
    """Return a setting that must be an integer of at least 1.

    Raises:
        InputError: It is not.
    """
    check_whole(key, value, 1)
    return value
