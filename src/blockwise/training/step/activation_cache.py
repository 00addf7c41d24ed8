"""A cache of the frozen stages' output for images that are the same in every epoch."""

from __future__ import annotations

from blockwise.backbone.stages import Activations, StagedBackbone, bytes_of


class ActivationCache:
    """Caches the activations of each batch at one boundary, up to a maximum size.

    Args:
        max_bytes: Maximum size in bytes, in the memory of the training device.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._cached: dict[int, tuple[int, Activations]] = {}

    def at(self, boundary: int, batch: int, backbone: StagedBackbone, images: Activations) -> Activations:
        """Return the activations of a batch at a boundary, from the cache or computed.

        Args:
            boundary: The first boundary from which any cell continues.
            batch: Index of the batch; the same index must stand for the same images.
            backbone: Computes activations that are not in the cache.
            images: The activations at boundary 0.
        """
        start, activations = self._cached.pop(batch, (0, images))
        self._room += bytes_of(activations.values()) if start else 0
        if start > boundary:  # a policy has begun to train an earlier stage
            start, activations = 0, images
        ((_, activations),) = backbone.onward(start, activations, {boundary})
        if boundary and (size := bytes_of(activations.values())) <= self._room:
            self._room -= size
            self._cached[batch] = boundary, activations
        return activations
