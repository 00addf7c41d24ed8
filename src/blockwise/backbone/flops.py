"""What a cell costs, in floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence

from blockwise.backbone.partition import Partition
from blockwise.policies import Phase


def cell_flops(partition: Partition, blocks: Sequence[int], changed: Sequence[int] = (), *, whole: bool = True) -> int:
    """Return a cell's own FLOPs per image in an epoch: forward and backward pass, and weight gradients.

    Args:
        partition: The partition of the network.
        blocks: The blocks that train; the backward pass ends at the first of them.
        changed: The blocks that have been trained before; the forward pass begins at the first of all.
        whole: Whether the weights of layers train, not only norms or biases.
    """
    layers, end = partition.layers, len(partition.layers)
    trained = {index for block in blocks for index in _layers(partition, block)}
    first = min(trained, default=end)
    begun = min((index for block in changed for index in _layers(partition, block)), default=end)
    forward = sum(layer.flops for layer in layers[min(first, begun) :])
    backward = sum(layer.flops for layer in layers[first:])
    if whole:
        # the first trained layer with weights needs no input gradient
        backward -= next((layer.flops for layer in layers[first:] if layer.num_parameters), 0)
        backward += sum(layers[index].flops for index in trained)
    return forward + backward


def _layers(partition: Partition, block: int) -> range:
    return range(partition.blocks[block].first, partition.blocks[block].last + 1)


def mean_flops(partition: Partition, phases: Sequence[Phase], *, whole: bool = True) -> int:
    """Return a cell's own FLOPs per image, the mean of all epochs; for `whole`, see `cell_flops`."""
    changed: set[int] = set()
    total = 0
    for phase in phases:
        changed |= set(phase.blocks)
        total += cell_flops(partition, phase.blocks, sorted(changed), whole=whole)
    return total // max(1, len(phases))
