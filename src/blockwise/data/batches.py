"""Samplers whose batches depend only on seed and epoch, so that training can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Draw:
    """The part of a batch that one process loads.

    Attributes:
        positions: Positions of the images in the split.
        seeds: One seed per image for its random augmentation; the seed does not depend on the process.
    """

    positions: Sequence[int]
    seeds: Sequence[int]


class ShuffledBatches(Sampler[Draw]):
    """Batches of all images in a new random order for each epoch; a last batch of a single image is dropped.

    Args:
        count: Number of images in the split.
        batch_size: Images per batch, summed over all processes.
        seed: Seed of the order and of the images' augmentation; it is combined with the epoch.
        part: Rank of this process.
        parts: Number of processes that share each batch.
        resume_at: Epoch and index of the first batch, if training resumes from a checkpoint.

    Attributes:
        epoch: The next epoch; Lightning sets it.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        part: int = 0,
        parts: int = 1,
        *,
        resume_at: tuple[int, int] = (0, 0),
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.parts = parts
        self.resume_at = resume_at
        self.epoch = resume_at[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (rest > 1)  # batch norm needs two images

    def __iter__(self) -> Iterator[Draw]:
        generator = Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        seeds = torch.randint(2**62, (self.count,), generator=generator)
        done = self.resume_at[1] if self.epoch == self.resume_at[0] else 0
        self.epoch += 1
        for batch in range(done, len(self)):
            own = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield Draw(*(part_of(values[own], self.part, self.parts).tolist() for values in (order, seeds)))


class OrderedBatches(Sampler[Draw]):
    """Batches of all images, in the order of the split."""

    def __init__(self, count: int, batch_size: int, part: int = 0, parts: int = 1) -> None:
        self.count = count
        self.batch_size = batch_size
        self.part = part
        self.parts = parts

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        for batch in torch.arange(self.count).split(self.batch_size):
            yield Draw(part_of(batch, self.part, self.parts).tolist(), [])


def part_of(batch: Tensor, part: int, parts: int) -> Tensor:
    """Return the images of a batch that process `part` gets: every `parts`-th one."""
    return batch[part::parts]


def derive_seed(*numbers: int) -> int:
    """Return a seed that depends on all numbers and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
