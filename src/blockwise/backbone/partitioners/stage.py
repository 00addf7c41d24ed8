"""The architecture's own stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

from torch import nn

from blockwise.backbone.layers import Layer
from blockwise.backbone.partition import BlockPartitioner, spans_from, unit_starts
from blockwise.backbone.partitioners.unit import Unit, find_units


class StagePartitioner(BlockPartitioner):
    """The architecture's own stages: from timm's `feature_info` if there is one, else runs of equal resolution.

    Stages begin where units begin; see `UnitPartitioner`. In a run of equal resolution, a new width begins a stage as
    well, unless features are concatenated, as in DenseNet. If all units have one resolution and width, as in a vision
    transformer, each is a stage.
    """

    name = "stage"

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return one span per stage."""
        units = find_units(layers, network)
        starts = [unit.first for unit in units]
        if ends := _feature_ends(layers, network):
            firsts = {0} | {next((start for start in starts if start > end), 0) for end in ends}
        elif any(unit.repeated for unit in units):
            firsts = {0, *_first_of_runs(layers, units)}
        else:
            plain = unit_starts(layers)
            firsts = {0, *(next((start for start in plain if start > end), 0) for end in _shrinking(layers, plain))}
        return spans_from(sorted(firsts), len(layers))

    def rules(self, layers: Sequence[Layer], network: nn.Module) -> int:
        """Return 2 if the first versions cut the network into other stages."""
        plain = unit_starts(layers)
        ends = _feature_ends(layers, network) or _shrinking(layers, plain)
        firsts = {0} | {next((start for start in plain if start > end), 0) for end in ends}
        same = spans_from(sorted(firsts), len(layers)) == self.blocks(layers, network)
        return super().rules(layers, network) if same else 2


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


def _first_of_runs(layers: Sequence[Layer], units: Sequence[Unit]) -> list[int]:
    """Return the first layer of each run of units with the same resolution and width of their output."""
    repeated = [index for index, unit in enumerate(units) if unit.repeated]
    # what comes before the first and after the last repeated unit is stem and end of these
    core = units[repeated[0] : repeated[-1] + 1]
    widths = not any(layers[unit.first].merges for unit in units)
    sizes = [_output(layers, unit) for unit in core[:-1]]
    # the last unit may be followed by the pooling at the end of the network
    end = layers[core[-1].end or core[-1].last]
    sizes.append(area_and_width(end.output_size, end.channels))
    runs = [list(run) for _, run in groupby(zip(core, sizes, strict=True), lambda pair: pair[1][: 1 + widths])]
    if len(runs) == 1:
        return [unit.first for unit in core[1:]]
    return [run[0][0].first for run in runs[1:]]


def _output(layers: Sequence[Layer], unit: Unit) -> tuple[int, int]:
    """Return resolution and width of what a unit passes on to the next one."""
    following = layers[unit.last + 1]
    return area_and_width(following.stream_size, following.channels)


def area_and_width(size: tuple[int, ...], channels: int) -> tuple[int, int]:
    """Return the number of positions and of channels of a map or of a row of tokens.

    Args:
        size: Shape without the batch dimension.
        channels: The channels of the layer that reads it, which tells whether they come first or last.
    """
    positions = prod(size)
    if channels in size:
        return positions // channels, channels
    if len(size) == 3:
        width = size[2] if size[0] == size[1] else size[0]
        return positions // max(width, 1), width
    return (size[0], size[1]) if len(size) == 2 else (1, positions)


def _shrinking(layers: Sequence[Layer], starts: Sequence[int]) -> list[int]:
    """Return the layers after which the feature map gets smaller."""
    areas = [_map_area(layers[start].output_size) for start in starts]
    return [after - 1 for after, a, b in zip(starts[1:], areas, areas[1:], strict=False) if 0 < b < a]


def _map_area(size: tuple[int, ...]) -> int:
    return size[1] * size[2] if len(size) == 3 else 0
