"""A cache of the frozen stages' output for training images that are the same in every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blockwise.backbone.stages import Activations, StagedBackbone, bytes_of
from blockwise.data.pixels.on_device import to_device


class ImageCache:
    """Caches the activations of each training image at one boundary, if all of them fit into a maximum size.

    In another batch, arithmetic could round otherwise. So only whole batches are cached and read, and the first batch
    that is read is computed as well: if the two differ in a single bit, the cache is given up.

    Args:
        max_bytes: Maximum size in bytes, in the memory of the training device.
        count: Number of training images.

    Attributes:
        hits: Number of batches that were read.
    """

    def __init__(self, max_bytes: int, count: int) -> None:
        self._max_bytes = max_bytes
        self._count = count
        self._boundary = 0
        self._size = 0
        self._checked = False
        self._known = torch.zeros(count, dtype=torch.bool)
        self._stored: dict[str, Tensor] = {}
        self.hits = 0

    def at(self, boundary: int, positions: Sequence[int], backbone: StagedBackbone, images: Activations) -> Activations:
        """Return the activations of a batch at a boundary, from the cache or computed.

        Args:
            boundary: The first boundary from which any cell continues.
            positions: Positions of the images among the training images.
            backbone: Computes activations that are not in the cache.
            images: The activations at boundary 0.
        """
        if boundary == 0 or not self._max_bytes:
            return images if boundary == 0 else _computed(boundary, backbone, images)
        if boundary != self._boundary:
            self._begin(boundary, len(positions))
        whole = len(positions) == self._size
        places = torch.tensor(positions)
        if not (whole and bool(self._known[places].all())):
            activations = _computed(boundary, backbone, images)
            if whole:
                self._store(places, activations)
            return activations
        found = {
            name: _like(values[to_device(positions, values.device, torch.long)], values)
            for name, values in self._stored.items()
        }
        if not self._checked:
            computed = _computed(boundary, backbone, images)
            self._checked = True
            if not _same(found, computed):
                self._max_bytes, self._stored = 0, {}
            return computed
        self.hits += 1
        return found

    def _begin(self, boundary: int, size: int) -> None:
        self._boundary, self._size, self._checked, self._stored = boundary, size, False, {}
        self._known.zero_()

    def _store(self, places: Tensor, activations: Activations) -> None:
        if not self._stored and not self._make_room(len(places), activations):
            self._max_bytes = 0
            return
        for name, values in activations.items():
            self._stored[name][to_device(places.tolist(), values.device, torch.long)] = values
        self._known[places] = True

    def _make_room(self, size: int, activations: Activations) -> bool:
        """Allocate the cache; return whether it fits, and whether each value has one row per image."""
        if not all(isinstance(value, Tensor) and value.ndim and len(value) == size for value in activations.values()):
            return False
        if bytes_of(activations.values()) * self._count > self._max_bytes * size:
            return False
        for name, value in activations.items():
            room = value.new_empty((self._count, *value.shape[1:]))
            self._stored[name] = _like(room, value)
        return True


def _computed(boundary: int, backbone: StagedBackbone, images: Activations) -> Activations:
    ((_, activations),) = backbone.onward(0, images, {boundary})
    return activations


def _like(values: Tensor, example: Tensor) -> Tensor:
    """Return values in the memory format of an example."""
    last = example.ndim == 4 and example.is_contiguous(memory_format=torch.channels_last)
    return values.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _same(found: Mapping[str, Tensor], computed: Activations) -> bool:
    return found.keys() == computed.keys() and all(torch.equal(found[name], computed[name]) for name in found)
