"""Partitioners: group the layers of a backbone into blocks.

A partitioner is a small class with a name and a `blocks` method. To add one, write the class and a YAML file in
`conf/partition/`. `layer`, `segment` and `window` come from Barakat & Huang (2023). Their fourth method, training the
best-ranked blocks jointly, is the scope `top3`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.errors import InputError

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
    """

    name: str
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]

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
        return Partition(self.name, tuple(layers), blocks)


class LayerPartitioner(BlockPartitioner):
    """Every weighted layer is a block of its own."""

    name = "layer"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span per weighted layer, including the norm and the weightless layers that follow it."""
        return spans_from(unit_starts(layers), len(layers))


class SegmentPartitioner(BlockPartitioner):
    """Cuts the network at separators and merges adjacent segments into `num_blocks` balanced blocks.

    Args:
        separators: Kinds of layers that end a segment: `pool`, `activation`, or both.
        num_blocks: Number of blocks after merging; None keeps every segment as a block.
        balance: Quantity to balance between blocks: weighted `layers`, `parameters` or `flops`.
    """

    name = "segment"

    def __init__(
        self,
        separators: str | Sequence[str] = ("pool", "activation"),
        num_blocks: int | None = 12,
        balance: Weight = "layers",
    ) -> None:
        self.separators = (separators,) if isinstance(separators, str) else tuple(separators)
        self.num_blocks = num_blocks
        self.balance = _one_of("partition.balance", balance, ("layers", "parameters", "flops"))
        for separator in self.separators:
            _one_of("partition.separators", separator, ("pool", "activation"))
        if not self.separators:
            raise InputError("partition.separators=[] is empty: choose pool, activation or both")

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the merged segments."""
        starts = self._segment_starts(layers)
        if self.num_blocks is not None:
            starts = merge(starts, layers, self.num_blocks, self.balance, "segments")
        return spans_from(starts, len(layers))

    def _segment_starts(self, layers: Sequence[Layer]) -> list[int]:
        units = unit_starts(layers)
        ends = [layer.index for layer in layers if self._separates(layer)]
        # after a separator between a convolution and its norm, the next segment starts behind the norm
        return sorted({0} | {next((unit for unit in units if unit > end), 0) for end in ends})

    def _separates(self, layer: Layer) -> bool:
        return ("pool" in self.separators and layer.kind == "pool") or (
            "activation" in self.separators and layer.activates
        )


class WindowPartitioner(BlockPartitioner):
    """A window of `length` weighted layers that slides over the network by `stride` layers; blocks may overlap.

    The last window is shifted back to end at the last layer, so every layer is in at least one block.
    """

    name = "window"

    def __init__(self, length: int = 8, stride: int = 4) -> None:
        self.length = _at_least_one("partition.length", length)
        self.stride = _at_least_one("partition.stride", stride)
        if stride > length:
            raise InputError(
                f"partition.stride={stride} skips layers between windows of partition.length={length}: "
                f"choose a stride from 1 to {length}"
            )

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the span of the window at each position."""
        units = unit_starts(layers)
        if self.length > len(units):
            raise InputError(
                f"partition.length={self.length} is longer than the backbone's {len(units)} weighted layers: "
                f"choose 1 to {len(units)}"
            )
        edges = [*units, len(layers)]
        last = len(units) - self.length
        firsts = sorted({*range(0, last + 1, self.stride), last})
        return [(edges[first], edges[first + self.length] - 1) for first in firsts]


class StagePartitioner(BlockPartitioner):
    """The architecture's own stages: from timm's `feature_info` if there is one, else runs of equal resolution."""

    name = "stage"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span per stage."""
        units = unit_starts(layers)
        ends = _feature_ends(layers, network) or _resolution_ends(layers, units)
        starts = {0} | {next((unit for unit in units if unit > end), 0) for end in ends}
        return spans_from(sorted(starts), len(layers))


class EvenPartitioner(BlockPartitioner):
    """`num_blocks` blocks with nearly the same number of weighted layers each."""

    name = "even"

    def __init__(self, num_blocks: int = 12) -> None:
        self.num_blocks = num_blocks

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the blocks."""
        starts = merge(unit_starts(layers), layers, self.num_blocks, "layers", "weighted layers")
        return spans_from(starts, len(layers))


def unit_starts(layers: Sequence[Layer]) -> list[int]:
    """Return the layers at which a block may begin: weighted layers that are not joined to the layer before them."""
    starts = [layer.index for layer in layers if layer.kind in ("weighted", "norm") and not layer.joined]
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
        raise InputError(
            f"partition.num_blocks={num} does not fit: the backbone has {len(starts)} {what}, so choose 1 to "
            f"{len(starts)}" + (", or null to keep every segment" if what == "segments" else "")
        )
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


def _feature_ends(layers: Sequence[Layer], network: nn.Module) -> list[int]:
    """Return the last layer of each module that timm lists as the end of a stage."""
    info = getattr(network, "feature_info", None) or []
    modules = [entry["module"] for entry in info if entry.get("module")] if isinstance(info, list) else []
    ends = []
    for module in modules:
        inside = [layer.index for layer in layers if (layer.name + ".").startswith(module + ".")]
        if inside:
            ends.append(inside[-1])
    return ends


def _resolution_ends(layers: Sequence[Layer], units: Sequence[int]) -> list[int]:
    """Return the layers after which the feature map gets smaller."""
    sizes = [layers[unit].output_size for unit in units]
    areas = [size[1] * size[2] if len(size) == 3 else 0 for size in sizes]
    return [following - 1 for following, (a, b) in zip(units[1:], pairwise(areas), strict=True) if 0 < b < a]


def _one_of(key: str, value: Any, choices: Sequence[str]) -> Any:
    if value not in choices:
        raise InputError(f"{key}={value} is unknown: choose {' or '.join(choices)}")
    return value


def _at_least_one(key: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key}={value} must be an integer of at least 1")
    return value
