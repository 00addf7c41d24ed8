"""The units that an architecture repeats: transformer blocks, bottlenecks, dense layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import nn

from blockwise.backbone.layers import CONTAINERS, Layer, is_leaf
from blockwise.backbone.partition import (
    BlockPartitioner,
    Partition,
    Weight,
    merge,
    one_of,
    spans_from,
    unit_starts,
)

# number of blocks unless a config says another one
DEFAULT_BLOCKS = 12
# a span with a larger share of the weighted layers is cut further
LARGE = 1 / 4


class UnitPartitioner(BlockPartitioner):
    """Cuts between the units that the architecture repeats and merges them into `num_blocks` balanced blocks.

    A unit is one of several modules of one class, side by side in the network, at whose beginning the residual stream
    is whole: no later layer needs another value than its input. What is between units, such as the stem or a
    downsampling layer, is a unit as well.

    Args:
        num_blocks: Number of blocks after merging; None keeps every unit as a block. `auto` is 12, or the number of
            units if there are fewer.
        balance: Quantity to balance between blocks: weighted `layers`, `parameters` or `flops`.
    """

    name = "unit"

    def __init__(self, num_blocks: int | Literal["auto"] | None = "auto", balance: Weight = "layers") -> None:
        self.num_blocks = num_blocks
        self.balance = one_of("partition.balance", balance, ("layers", "parameters", "flops"))

    def rules(self, layers: Sequence[Layer], network: nn.Module) -> int:
        """Return 1: the first versions had no units."""
        del layers, network
        return 1

    def blocks(self, layers: Sequence[Layer], network: nn.Module) -> list[tuple[int, int]]:
        """Return the spans of the merged units."""
        starts = [unit.first for unit in find_units(layers, network)]
        number = min(DEFAULT_BLOCKS, len(starts)) if self.num_blocks == "auto" else self.num_blocks
        if number is not None:
            starts = merge(starts, layers, number, self.balance, "units")
        return spans_from(starts, len(layers))

    def __call__(self, layers: Sequence[Layer], network: nn.Module) -> Partition:
        """Partition a network; the options of the partition have the number of blocks instead of `auto`."""
        partition = super().__call__(layers, network)
        number = len(partition) if self.num_blocks == "auto" else self.num_blocks
        return replace(partition, options={"num_blocks": number, "balance": self.balance})


@dataclass(frozen=True)
class Unit:
    """Layers `first` to `last` (inclusive).

    Attributes:
        first: The first layer.
        last: The last layer, with layers without weights that follow the module.
        end: The last layer of the module that the architecture repeats; None if this is no such module.
    """

    first: int
    last: int
    end: int | None

    @property
    def repeated(self) -> bool:
        """Whether the architecture repeats it."""
        return self.end is not None


def find_units(layers: Sequence[Layer], network: nn.Module) -> list[Unit]:
    """Return the units of a network, input side first; together they contain all layers."""
    starts = _starts(layers)
    modules = _repeated_modules(layers, network, starts)
    units = _innermost([span for span in modules if _is_whole(layers, span, starts)])
    inside = {start for first, last in units for start in starts if first < start <= last}
    edges = [start for start in starts if start not in inside and not layers[start].beside]
    ends = dict(units)
    spans = spans_from(edges, len(layers))
    if units:
        spans = _join_plain(spans, set(ends), starts)
    spans = [piece for span in spans for piece in _cut_large(span, layers, modules, starts)]
    return [Unit(first, last, ends.get(first)) for first, last in spans]


def _starts(layers: Sequence[Layer]) -> list[int]:
    """Return the layers at which a unit may begin.

    A shortcut may begin with a pooling layer, before the first weighted layer; then the unit begins there.
    """
    starts: list[int] = []
    for first in unit_starts(layers):
        before = range(starts[-1] + 1, first) if starts and layers[first].beside else ()
        weightless = [i for i in before if layers[i].kind in ("pool", "activation", "other") and not layers[i].joined]
        whole = [index for index in weightless if not layers[index].beside]
        starts.append(whole[-1] if whole else first)
    return starts


def _repeated_modules(layers: Sequence[Layer], network: nn.Module, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the spans of modules with several weighted layers and with siblings of their kind."""
    repeated = {
        kind
        for parent in network.modules()
        if not is_leaf(parent)
        for kind, count in Counter(map(_kind, parent.children())).items()
        if count > 1
    }
    spans = []
    for name, module in network.named_modules():
        if is_leaf(module) or _kind(module) not in repeated:
            continue
        inside = [layer.index for layer in layers if layer.name.startswith(f"{name}.")]
        begins = [start for start in starts if inside and inside[0] <= start <= inside[-1]]
        if len(begins) > 1:
            spans.append((begins[0], inside[-1]))
    return spans


def _kind(module: nn.Module) -> tuple[type, ...]:
    """Return what modules that repeat each other have in common: their class, or that of the parts of a container."""
    if type(module) in CONTAINERS:
        return (type(module), *(type(child) for child in module.children()))
    return (type(module),)


def _is_whole(layers: Sequence[Layer], span: tuple[int, int], starts: Sequence[int]) -> bool:
    """Return whether the residual stream is whole where a module begins and where it ends."""
    first, last = span
    after = next((start for start in starts if start > last), None)
    ends = after is None or not layers[after].beside
    return first in starts and not layers[first].beside and ends


def _innermost(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans that contain no other one."""
    distinct = sorted(set(spans))
    return [a for a in distinct if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in distinct)]


def _join_plain(spans: Sequence[tuple[int, int]], firsts: set[int], starts: Sequence[int]) -> list[tuple[int, int]]:
    """Join adjacent spans of one weighted layer each, such as the convolutions of a stem."""
    joined: list[tuple[int, int]] = []
    plain_before = False
    for first, last in spans:
        plain = first not in firsts and sum(first <= start <= last for start in starts) <= 1
        if plain and plain_before:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
        plain_before = plain
    return joined


def _cut_large(
    span: tuple[int, int], layers: Sequence[Layer], modules: Sequence[tuple[int, int]], starts: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Cut a large span, where several values are always needed, between modules at whose beginning they are fewest."""
    first, last = span
    inside = [start for start in starts if first < start <= last]
    within = [module for module in modules if module[0] in inside and module[1] <= last]
    if len(inside) + 1 <= LARGE * len(starts) or not within:
        yield span
        return
    fewest = min(layers[module[0]].beside for module in within)
    cuts = {module[0] for module in _innermost([m for m in within if layers[m[0]].beside == fewest])}
    for begin, following in pairwise([first, *sorted(cuts), last + 1]):
        yield from _cut_large((begin, following - 1), layers, modules, starts)
