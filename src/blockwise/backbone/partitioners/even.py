"""Blocks with equally many weighted layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, merge, spans_from, unit_starts


class EvenPartitioner(BlockPartitioner):
    """`num_blocks` blocks with nearly the same number of weighted layers each."""

    name = "even"

    def __init__(self, num_blocks: int = 12) -> None:
        self.num_blocks = num_blocks

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the blocks."""
        starts = merge(unit_starts(layers), layers, self.num_blocks, "layers", "weighted layers")
        return spans_from(starts, len(layers))
