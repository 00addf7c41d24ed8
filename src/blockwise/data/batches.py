"""Which images make up which batch: a function of seed and epoch alone, so that training can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Draw:
    """One process's part of a batch.

    Attributes:
        positions: Of its images in the split.
        seeds: One an image, for what is random about it; the same wherever the image is handled.
    """

    positions: Sequence[int]
    seeds: Sequence[int]


class ShuffledBatches(Sampler[Draw]):
    """Every image once an epoch, in an order of its own each time; a last batch of one image is left out.

    Args:
        count: Images of the split.
        batch_size: Images a batch, over all processes.
        seed: Decides order and seeds, together with the epoch.
        part: Number of this process among `parts`, which share each batch out.
        parts: Number of processes.
        resume_at: Epoch and number of the first batch, where training goes on from a checkpoint.

    Attributes:
        epoch: Which epoch is next; Lightning sets it.
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
        """Choose the epoch that comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (rest > 1)  # batch norm needs two images

    def __iter__(self) -> Iterator[Draw]:
        generator = Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        seeds = torch.randint(2**62, (self.count,), generator=generator)
        done = self.resume_at[1] if self.epoch == self.resume_at[0] else 0
        self.epoch += 1
        for batch in range(done, len(self)):
            own = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield Draw(*(part_of(values[own], self.part, self.parts).tolist() for values in (order, seeds)))


class OrderedBatches(Sampler[Draw]):
    """Every image once, in the order of the split."""

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
    """Return what the process `part` of `parts` gets of a batch: its turn of every `parts` images."""
    return batch[part::parts]


def mixed(*numbers: int) -> int:
    """Return a seed that depends on all of some numbers, none of them more than another."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
