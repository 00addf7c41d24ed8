"""Where the residual stream is whole, and what is inside its branches: squeeze-and-excitation, attention, MLPs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from blockwise.backbone.layers.dataflow import DataFlow, Step
from blockwise.backbone.layers.layer import Layer


def with_branches(
    layers: list[Layer], flow: DataFlow, sizes: list[tuple[int, ...]], pointwise: set[int], products: list[int]
) -> list[Layer]:
    """Return the layers with what the flow of data says about each: `beside`, `merges`, `inner` and `stream_size`.

    Args:
        layers: The layers.
        flow: The steps of the forward pass.
        sizes: The shape of each value, without the batch dimension.
        pointwise: Layers that mix channels alone: linear layers, and convolutions with a kernel of 1.
        products: Steps that multiply two matrices that depend on the images.
    """
    found = list(layers)
    whole = [0]  # the steps at which the residual stream is whole
    for number, (step, live) in enumerate(flow.live()):
        if step.layer is None:
            continue
        read = flow.read_by(step)
        beside = len(live - read)
        if not beside:
            whole.append(number)
        size = sizes[next(iter(read))] if len(read) == 1 else sizes[step.reads[0]]
        found[step.layer] = replace(found[step.layer], beside=beside, merges=len(read) > 1, stream_size=size)
    flowing = {step.layer for step in flow.steps}
    for layer in reversed(found[:-1]):
        if layer.index not in flowing:  # it depends on no image, so it is where its reader is
            reader = found[layer.index + 1]
            found[layer.index] = replace(
                layer,
                beside=reader.beside,
                merges=reader.merges,
                stream_size=reader.stream_size,
                channels=reader.channels,
            )
    attention = _spans_of(products, whole, len(flow.steps))
    weightless = {layer.index for layer in found if layer.kind in ("norm", "scale", "activation", "other")}
    linear = {layer.index for layer in found if layer.type in ("Linear", "linear")}
    for number, step in enumerate(flow.steps):
        if step.layer is None or not found[step.layer].beside:
            continue
        layer = found[step.layer]
        if layer.kind == "pool" or layer.activates:
            around = _around(step, flow, weightless)
            in_mlp = bool(around & linear) or around <= pointwise
            found[step.layer] = replace(layer, inner=number in attention or _is_gate(layer) or in_mlp)
    return found


def _spans_of(steps: Iterable[int], whole: list[int], end: int) -> set[int]:
    """Return all steps between the whole boundaries around some steps."""
    found: set[int] = set()
    for step in steps:
        first = max((edge for edge in whole if edge <= step), default=0)
        found.update(range(first, min((edge for edge in whole if edge > step), default=end)))
    return found


def _is_gate(layer: Layer) -> bool:
    """Return whether a layer of a branch makes one number per channel, as squeeze-and-excitation does."""
    size = layer.output_size
    return len(size) == 1 or (len(size) == 3 and 1 in (size[0] * size[1], size[1] * size[2]))


def _around(step: Step, flow: DataFlow, weightless: set[int]) -> set[int | None]:
    """Return the weighted layers in front of and behind an activation that only one of each is connected to."""
    before = flow.behind(step, weightless)
    return {before.layer if before else None, _only_reader(step, flow, weightless)}


def _only_reader(step: Step, flow: DataFlow, through: set[int]) -> int | None:
    """Return the layer that alone reads what a step makes, directly or through layers without weights."""
    while len(step.makes) == 1 and len(readers := flow.readers.get(step.makes[0], [])) == 1:
        step = flow.steps[readers[0]]
        if len(set(step.reads)) > 1:
            return None
        if step.layer is not None and step.layer not in through:
            return step.layer
    return None
