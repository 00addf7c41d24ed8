"""Images that are decoded each time they are read, since they fit neither the cache nor memory."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from blockwise.data.decode import decode, decode_all
from blockwise.data.pixels import Decoded
from blockwise.data.pixels.seen import Seen, decode_missing
from blockwise.data.samples import Sample

# pixels without a cache are kept in memory up to this size
MOST_IN_MEMORY = 10**9
# more worker processes decode faster than a network trains
MOST_WORKERS = 8
SHARED = Path("/dev/shm")  # noqa: S108 (where the system has shared memory)
# a DataLoader prefetches two per worker, and there are three loaders
BATCHES_OF_A_WORKER = 3 * (2 + 1)


class OnDemand:
    """The images of one split; `images[positions]` decodes some of them.

    Args:
        samples: The samples.
        size: Side of the decoded images in pixels.
        interpolation: A key of `INTERPOLATIONS`.
    """

    def __init__(self, samples: Sequence[Sample], size: int, interpolation: str) -> None:
        self._images = [sample.image for sample in samples]
        self._size, self._interpolation = size, interpolation

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, positions: Sequence[int]) -> np.ndarray:
        return np.stack([decode(self._images[position], self._size, self._interpolation) for position in positions])


def usual_workers(batch_bytes: int) -> int:
    """Return the number of worker processes that decode if the user gives none.

    Args:
        batch_bytes: Size of a batch, which a worker hands over in shared memory; a container may have little of it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = shutil.disk_usage(SHARED).free // (BATCHES_OF_A_WORKER * batch_bytes) if SHARED.is_dir() else cores
    return max(1, min(cores, MOST_WORKERS, room))


def fit_in_memory(size: int) -> bool:
    """Return whether this many bytes of pixels are kept in memory if there is no cache."""
    return size <= MOST_IN_MEMORY


def decode_without_cache(
    samples: Sequence[Sample], size: int, interpolation: str, report: Callable[[], None]
) -> Decoded:
    """Return the pixels of a split: in memory if they are few, else on demand."""
    few = fit_in_memory(math.prod((len(samples), 3, size, size)))
    return (decode_all if few else decode_on_demand)(samples, size, interpolation, report)


def decode_on_demand(samples: Sequence[Sample], size: int, interpolation: str, report: Callable[[], None]) -> Decoded:
    """Decode all images of a split once, to find broken ones before training; keep none."""
    broken = decode_missing(samples, size, interpolation, report, seen=Seen(None, len(samples)))
    return OnDemand(samples, size, interpolation), broken
