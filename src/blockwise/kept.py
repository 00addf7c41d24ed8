"""What is live at a boundary, kept from epoch to epoch: the same images need not pass the frozen stages again."""

from __future__ import annotations

from blockwise.stages import Live, StagedBackbone


class KeptActivations:
    """Keeps what is live at one boundary, batch by batch, as long as there is room.

    Args:
        max_bytes: How much room, in the memory that the network computes in.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._kept: dict[int, tuple[int, Live]] = {}

    def at(self, boundary: int, batch: int, backbone: StagedBackbone, images: Live) -> Live:
        """Return what is live at a boundary for a batch: kept from before, or from a boundary before it, or computed.

        Args:
            boundary: The first boundary that anything runs on from; never less than in an earlier call.
            batch: Number of the batch; the same number stands for the same images.
            backbone: Computes it.
            images: What is live at boundary 0.
        """
        start, live = self._kept.pop(batch, (0, images))
        self._room += _bytes(live) if start else 0
        ((_, live),) = backbone.onward(start, live, {boundary})
        if boundary and _bytes(live) <= self._room:
            self._room -= _bytes(live)
            self._kept[batch] = boundary, live
        return live


def _bytes(live: Live) -> int:
    return sum(value.numel() * value.element_size() for value in live.values())
