"""Layers -> blocks: the partitioners.

A partitioner is a small class with a name and a `blocks` method; a new one is that class and a YAML under
`conf/partition/`. Four come from Barakat & Huang (2023): `layer`, `segment`, `window` and, by way of the scope
`top3`, the few best-ranked blocks together.
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
        name: The partitioner's name.
        layers: Every layer of the backbone.
        blocks: The blocks; they may overlap (`window`), and together they hold every parameter.
    """

    name: str
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def cuts(self) -> list[int]:
        """Layers at which a stage begins: every edge of every block, 0 included."""
        edges = {block.first for block in self.blocks} | {block.last + 1 for block in self.blocks}
        return sorted(edges - {len(self.layers)})

    def stages_of(self, block: int) -> range:
        """Return the stages that block number `block` is made of."""
        first, last = self.blocks[block].first, self.blocks[block].last
        inside = [stage for stage, cut in enumerate(self.cuts) if first <= cut <= last]
        return range(inside[0], inside[-1] + 1)

    def layers_of(self, block: int) -> tuple[Layer, ...]:
        """Return the layers of block number `block`."""
        return self.layers[self.blocks[block].first : self.blocks[block].last + 1]

    def quarter(self, block: int) -> int:
        """Return the quarter of the network's weighted layers, 1 to 4, that the middle of a block lies in."""
        units = unit_starts(self.layers)
        first, last = self.blocks[block].first, self.blocks[block].last
        inside = [depth for depth, start in enumerate(units) if first <= start <= last]
        middle = (inside[0] + inside[-1] + 1) / 2
        return min(4, 1 + int(4 * middle / len(units)))


class BlockPartitioner(ABC):
    """A strategy that turns the ordered layers of a network into blocks."""

    name: ClassVar[str]

    @abstractmethod
    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the first and last layer of every block, input side first."""

    def __call__(self, layers: Sequence[Layer], network: nn.Module) -> Partition:
        """Partition a network whose layers are known.

        Raises:
            InputError: The options do not fit this network.
        """
        if not any(layer.num_parameters for layer in layers):
            raise InputError("the backbone executes no layer with parameters: there is nothing to fine-tune in it")
        spans = self.blocks(layers, network)
        blocks = tuple(Block(index, first, last) for index, (first, last) in enumerate(spans))
        return Partition(self.name, tuple(layers), blocks)


class LayerPartitioner(BlockPartitioner):
    """Every weighted layer is a block of its own."""

    name = "layer"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span for each weighted layer, with the norm and the weightless layers that follow it."""
        return spans_from(unit_starts(layers), len(layers))


class SegmentPartitioner(BlockPartitioner):
    """Layers between separators; neighbouring segments merged into `num_blocks` balanced blocks.

    Args:
        separators: Kinds of layer that end a segment: `pool`, `activation`, or both.
        num_blocks: How many blocks to merge the segments into; None keeps every segment.
        balance: What the merged blocks shall have alike: weighted `layers`, `parameters` or `flops`.
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
            raise InputError("partition.separators=[] ends no segment: choose pool, activation or both")

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the segments, merged."""
        starts = self._segment_starts(layers)
        if self.num_blocks is not None:
            starts = merge(starts, layers, self.num_blocks, self.balance, "segments")
        return spans_from(starts, len(layers))

    def _segment_starts(self, layers: Sequence[Layer]) -> list[int]:
        units = unit_starts(layers)
        ends = [layer.index for layer in layers if self._separates(layer)]
        # a separator between a convolution and its norm takes effect behind the norm, so always at a unit
        return sorted({0} | {next((unit for unit in units if unit > end), 0) for end in ends})

    def _separates(self, layer: Layer) -> bool:
        return ("pool" in self.separators and layer.kind == "pool") or (
            "activation" in self.separators and layer.activates
        )


class WindowPartitioner(BlockPartitioner):
    """A window of `length` weighted layers that slides over the network by `stride`; blocks may overlap.

    The last window is moved back to end with the network, so that every layer is in at least one block.
    """

    name = "window"

    def __init__(self, length: int = 8, stride: int = 4) -> None:
        self.length = _at_least_one("partition.length", length)
        self.stride = _at_least_one("partition.stride", stride)
        if stride > length:
            raise InputError(
                f"partition.stride={stride} skips layers between windows of partition.length={length}: "
                f"choose a stride of 1 to {length}"
            )

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the span of every position of the window."""
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
    """The architecture's own stages: timm's `feature_info` where there is one, else runs of equal resolution."""

    name = "stage"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span a stage."""
        units = unit_starts(layers)
        ends = _feature_ends(layers, network) or _resolution_ends(layers, units)
        starts = {0} | {next((unit for unit in units if unit > end), 0) for end in ends}
        return spans_from(sorted(starts), len(layers))


class EvenPartitioner(BlockPartitioner):
    """`num_blocks` runs with (nearly) the same number of weighted layers each."""

    name = "even"

    def __init__(self, num_blocks: int = 12) -> None:
        self.num_blocks = num_blocks

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the runs."""
        starts = merge(unit_starts(layers), layers, self.num_blocks, "layers", "weighted layers")
        return spans_from(starts, len(layers))


def unit_starts(layers: Sequence[Layer]) -> list[int]:
    """Return where a block may begin: at each weighted layer that need not stay with the layer before it."""
    starts = [layer.index for layer in layers if layer.kind in ("weighted", "norm") and not layer.joined]
    return [0, *starts[1:]]


def spans_from(starts: Sequence[int], end: int) -> list[tuple[int, int]]:
    """Turn the starts of adjoining runs into first and last layers."""
    return [(first, following - 1) for first, following in pairwise([*starts, end])]


def merge(starts: Sequence[int], layers: Sequence[Layer], num: int, balance: Weight, what: str) -> list[int]:
    """Merge adjoining runs of layers into `num` runs as alike in weight as can be.

    Least squares over all ways to cut an ordered list (dynamic programming), so the result is the best one, not
    a greedy guess.

    Raises:
        InputError: There are fewer runs than `num`.
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
        # candidates[j, i]: the first i runs cut at best, and runs i..j-1 as one more block
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
    """Return the last layer of every module that timm lists as the end of a stage."""
    info = getattr(network, "feature_info", None) or []
    modules = [entry["module"] for entry in info if entry.get("module")] if isinstance(info, list) else []
    ends = []
    for module in modules:
        inside = [layer.index for layer in layers if (layer.name + ".").startswith(module + ".")]
        if inside:
            ends.append(inside[-1])
    return ends


def _resolution_ends(layers: Sequence[Layer], units: Sequence[int]) -> list[int]:
    """Return the layers behind which the feature map gets smaller."""
    sizes = [layers[unit].output_size for unit in units]
    areas = [size[1] * size[2] if len(size) == 3 else 0 for size in sizes]
    return [following - 1 for following, (a, b) in zip(units[1:], pairwise(areas), strict=True) if 0 < b < a]


def _one_of(key: str, value: Any, known: Sequence[str]) -> Any:
    if value not in known:
        raise InputError(f"{key}={value} is unknown: choose {' or '.join(known)}")
    return value


def _at_least_one(key: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key}={value} must be a whole number of at least 1")
    return value
