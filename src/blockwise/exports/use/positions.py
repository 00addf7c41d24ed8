"""Find the last layer of a network whose output has positions, and read this output as a map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# inside of attention, heads and windows look like channels and positions
ATTENTION = ("attn", "attention")
# a transformer's tokens in front of those of the patches: classes, distillation, registers
MOST_PREFIX = 8


@dataclass(frozen=True)
class Positions:
    """A layer whose output has positions.

    Attributes:
        module: The layer.
        kind: How its output is laid out: `nchw`, `nhwc`, or `tokens`, shape (batch, tokens, channels).
        side: Side of the square of positions.
    """

    module: nn.Module
    kind: str
    side: int

    def to_map(self, output: Tensor) -> Tensor:
        """Return an output as a map, shape (batch, channels, side, side)."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        return output[:, -(self.side**2) :].transpose(1, 2).unflatten(2, (self.side, self.side))

    def from_map(self, positions: Tensor, output: Tensor) -> Tensor:
        """Return a map in the layout of the output; other tokens are those of the output."""
        if self.kind == "nchw":
            return positions
        if self.kind == "nhwc":
            return positions.permute(0, 2, 3, 1)
        return torch.cat([output[:, : -(self.side**2)], positions.flatten(2).transpose(1, 2)], dim=1)


def last_positions(network: nn.Module, images: Tensor) -> Positions | None:
    """Return the last layer, as layers are run, that has positions which the logits depend on; None if there is none.

    Behind the last attention of a transformer that classifies by its class token, nothing depends on the patches.

    Args:
        network: The network.
        images: One image, shape (1, 3, size, size).
    """
    found: list[tuple[Positions, Tensor]] = []
    sides: set[int] = set()

    def keep(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad and (layout := _layout(output, sides)) is not None:
            kind, side = layout
            sides.add(side)
            output.retain_grad()
            found.append((Positions(module, kind, side), output))

    handles = [module.register_forward_hook(keep) for name, module in network.named_modules() if _may_have(name)]
    try:
        with torch.enable_grad():
            network(images.clone().requires_grad_()).max().backward()
    finally:
        for handle in handles:
            handle.remove()
    for parameter in network.parameters():
        parameter.grad = None
    for positions, output in reversed(found):
        if output.grad is not None and bool(positions.to_map(output.grad).any()):
            return positions
    return found[-1][0] if found else None


def _may_have(name: str) -> bool:
    return name != "" and not any(word in name.lower() for word in ATTENTION)


def _layout(output: Tensor, sides: set[int]) -> tuple[str, int] | None:
    """Return how the output of one square image is laid out, and the side of its square of positions.

    Args:
        output: The output.
        sides: Sides of earlier maps: tokens have one of them, that of the patches.
    """
    shape = tuple(output.shape)
    if shape[0] != 1:
        return None
    if len(shape) == 4 and shape[2] == shape[3] > 1:
        return "nchw", shape[2]
    if len(shape) == 4 and shape[1] == shape[2] > 1:
        return "nhwc", shape[1]
    if len(shape) == 3:
        fitting = [side for side in sides if 0 <= shape[1] - side**2 <= MOST_PREFIX and side > 1]
        return ("tokens", max(fitting)) if fitting else None
    return None


@contextmanager
def as_map(positions: Positions) -> Iterator[nn.Module]:
    """Yield a module that the output of a layer passes through as a map, shape (batch, channels, side, side)."""
    layer = nn.Identity()

    def through(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return positions.from_map(layer(positions.to_map(output)), output)

    handle = positions.module.register_forward_hook(through)
    try:
        yield layer
    finally:
        handle.remove()
