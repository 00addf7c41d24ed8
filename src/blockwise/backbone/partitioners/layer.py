"""Every weighted layer is a block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, spans_from, unit_starts


class LayerPartitioner(BlockPartitioner):
    """Every weighted layer is a block of its own."""

    name = "layer"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span per weighted layer, including the norm and the weightless layers that follow it."""
        return spans_from(unit_starts(layers), len(layers))
