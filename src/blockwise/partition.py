"""Public import path of partitions and partitioners, also used by configs."""

from blockwise.backbone.partition import Block, BlockPartitioner, Partition, merge, spans_from, unit_starts
from blockwise.backbone.partitioners.auto import AutoPartitioner
from blockwise.backbone.partitioners.even import EvenPartitioner
from blockwise.backbone.partitioners.layer import LayerPartitioner
from blockwise.backbone.partitioners.segment import SegmentPartitioner
from blockwise.backbone.partitioners.stage import StagePartitioner
from blockwise.backbone.partitioners.unit import Unit, UnitPartitioner, find_units
from blockwise.backbone.partitioners.window import WindowPartitioner

__all__ = [
    "AutoPartitioner",
    "Block",
    "BlockPartitioner",
    "EvenPartitioner",
    "LayerPartitioner",
    "Partition",
    "SegmentPartitioner",
    "StagePartitioner",
    "Unit",
    "UnitPartitioner",
    "WindowPartitioner",
    "find_units",
    "merge",
    "spans_from",
    "unit_starts",
]
