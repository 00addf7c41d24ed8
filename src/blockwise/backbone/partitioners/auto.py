"""The default partitioner: units where the architecture repeats some, else segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, Partition, one_of
from blockwise.backbone.partitioners.segment import SegmentPartitioner
from blockwise.backbone.partitioners.unit import DEFAULT_BLOCKS, UnitPartitioner, find_units


class AutoPartitioner(BlockPartitioner):
    """Chooses `unit` where the architecture repeats units, else `segment`.

    The partition is that of the chosen partitioner: same name, same settings, same records.

    Args:
        num_blocks: Number of blocks; None merges nothing. `auto` is 12, or as many as there are if they are fewer.
        prefer: `segment` or `unit`, whatever the architecture; the paper's networks prefer `segment`.
    """

    name = "auto"

    def __init__(self, num_blocks: int | Literal["auto"] | None = "auto", prefer: str | None = None) -> None:
        self.num_blocks = num_blocks
        self.prefer = None if prefer is None else one_of("partition.prefer", prefer, ("segment", "unit"))

    def __call__(self, layers: Sequence[Layer], network: nn.Module) -> Partition:
        """Partition a network with the partitioner that suits it."""
        name, reason = self._choose(layers, network)
        partitioner = UnitPartitioner(self.num_blocks) if name == "unit" else self._segments(layers, network)
        partition = partitioner(layers, network)
        return replace(partition, options=partition.options or partitioner.options(), reason=reason)

    def _choose(self, layers: Sequence[Layer], network: nn.Module) -> tuple[str, str]:
        """Return the name of the partitioner, and why it is chosen."""
        if self.prefer is not None:
            return self.prefer, "the default of this model"
        units = find_units(layers, network)
        if (repeated := sum(unit.repeated for unit in units)) > 1:
            return "unit", f"the architecture repeats {repeated} units"
        if len(units) > len(SegmentPartitioner(num_blocks=None)(layers, network)):
            return "unit", "the architecture has fewer segments than units"
        return "segment", "the architecture repeats no units"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the blocks."""
        return [(block.first, block.last) for block in self(layers, network).blocks]

    def _segments(self, layers: Sequence[Layer], network: nn.Module) -> SegmentPartitioner:
        """Return the partitioner into segments; a network that has fewer of them than the default keeps all."""
        every = SegmentPartitioner(num_blocks=None)
        if self.num_blocks != "auto":
            return SegmentPartitioner(num_blocks=self.num_blocks)
        return every if len(every(layers, network)) < DEFAULT_BLOCKS else SegmentPartitioner(num_blocks=DEFAULT_BLOCKS)
