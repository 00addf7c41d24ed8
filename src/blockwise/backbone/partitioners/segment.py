"""Segments that end at pooling layers and activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, Weight, merge, one_of, spans_from, unit_starts
from blockwise.errors import InputError


class SegmentPartitioner(BlockPartitioner):
    """Cuts the network at separators and merges adjacent segments into `num_blocks` balanced blocks.

    Args:
        separators: Kinds of layers that end a segment: `pool`, `activation`, or both. With `inner`, also those within
            squeeze-and-excitation, attention and MLPs.
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
        self.balance = one_of("partition.balance", balance, ("layers", "parameters", "flops"))
        for separator in self.separators:
            one_of("partition.separators", separator, ("pool", "activation", "inner"))
        if not set(self.separators) - {"inner"}:
            raise InputError(
                f"partition.separators={list(self.separators)} is not enough: choose pool, activation or both"
            )

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the merged segments."""
        starts = self._segment_starts(layers)
        if self.num_blocks is None:
            return spans_from(starts, len(layers))
        try:
            starts = merge(starts, layers, self.num_blocks, self.balance, "segments")
        except InputError as error:
            if any(layer.inner for layer in layers):
                raise InputError(
                    f"{error}; activations within squeeze-and-excitation, attention and MLPs end no segment: "
                    "partition=unit cuts between these, partition.separators=[pool,activation,inner] at them"
                ) from None
            raise
        return spans_from(starts, len(layers))

    def _segment_starts(self, layers: Sequence[Layer]) -> list[int]:
        starts, found = unit_starts(layers), {0}
        for first, last in spans_from(starts, len(layers)):
            weighted = next((i for i in range(first, last + 1) if layers[i].kind == "weighted"), last)
            ends = [index for index in range(first, last + 1) if self._separates(layers[index])]
            # norm, activation, convolution: they begin a segment together
            if any(end < weighted for end in ends):
                found.add(first)
            # convolution, activation, norm: the segment ends behind the norm
            if any(end >= weighted for end in ends) and last + 1 < len(layers):
                found.add(last + 1)
        return sorted(found)

    def _separates(self, layer: Layer) -> bool:
        kind = ("pool" in self.separators and layer.kind == "pool") or (
            "activation" in self.separators and layer.activates
        )
        return kind and ("inner" in self.separators or not layer.inner)

    def rules(self, layers: Sequence[Layer], network: nn.Module) -> int:
        """Return 2 if the first versions, for which every separator was an `inner` one too, cut at other layers."""
        first_versions = SegmentPartitioner([*self.separators, "inner"], self.num_blocks, self.balance)
        same = first_versions.blocks(layers, network) == self.blocks(layers, network)
        return super().rules(layers, network) if same else 2
