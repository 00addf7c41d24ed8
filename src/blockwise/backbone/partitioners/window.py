"""A window of layers that slides over the network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, at_least_one, unit_starts
from blockwise.errors import InputError


class WindowPartitioner(BlockPartitioner):
    """A window of `length` weighted layers that slides over the network by `stride` layers; blocks may overlap.

    The last window is shifted back to end at the last layer, so every layer is in at least one block.
    """

    name = "window"

    def __init__(self, length: int = 8, stride: int = 4) -> None:
        self.length = at_least_one("partition.length", length)
        self.stride = at_least_one("partition.stride", stride)
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
