"""Partitions and partitioners, under the name by which configs and users call them."""

from blockwise.backbone.partition import (
    Block,
    BlockPartitioner,
    EvenPartitioner,
    LayerPartitioner,
    Partition,
    SegmentPartitioner,
    StagePartitioner,
    WindowPartitioner,
    merge,
    spans_from,
    unit_starts,
)

__all__ = [
    "Block",
    "BlockPartitioner",
    "EvenPartitioner",
    "LayerPartitioner",
    "Partition",
    "SegmentPartitioner",
    "StagePartitioner",
    "WindowPartitioner",
    "merge",
    "spans_from",
    "unit_starts",
]
