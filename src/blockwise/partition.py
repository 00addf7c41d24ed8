"""Public import path of partitions and partitioners, also used by configs."""

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
