"""Decoded images in the memory of a GPU, from which batches are cut there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockwise.data.pixels import Pixels

# images are copied to the device in parts of at most this many
AT_ONCE = 256


class Places:
    """Stands for the images of a split in a loader: `places[positions]` are their places on the device.

    Args:
        first: The place of the first image.
        count: Number of images.
    """

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, positions: Sequence[int]) -> np.ndarray:
        return self._first + np.asarray(positions, np.int64)


def copy_to_device(splits: Sequence[Pixels], device: torch.device) -> tuple[Tensor, list[Places]]:
    """Return all images on a device, uint8, shape (images, 3, side, side), and the places of each split."""
    shape = (sum(map(len, splits)), *np.asarray(splits[0][[0]]).shape[1:])
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    places: list[Places] = []
    first = 0
    for split in splits:
        for indices in np.array_split(np.arange(len(split)), -(-len(split) // AT_ONCE)):
            images[first + indices[0] : first + indices[-1] + 1] = torch.from_numpy(np.asarray(split[indices.tolist()]))
        places.append(Places(first, len(split)))
        first += len(split)
    return images, places


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for what the device still has to do."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
