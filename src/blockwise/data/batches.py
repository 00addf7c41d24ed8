"""Samplers whose batches depend only on seed and epoch, so that training can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

# sets the seeds of mixing apart from the seeds of dropout, whose last number is the rank of a process
MIXING = 0x6D697865


@dataclass(frozen=True)
class Draw:
    """The part of a batch that one process loads.

    Attributes:
        positions: Positions of the images in the split.
        seeds: One seed per image for its random augmentation; the seed does not depend on the process.
        partners: If images are mixed, the index in `positions` of each image's partner. The images of this process come
            first; partners that belong to other processes follow.
        mix_seed: Seed of how the batch is mixed, the same in all processes; None mixes nothing.
    """

    positions: Sequence[int]
    seeds: Sequence[int]
    partners: Sequence[int] = ()
    mix_seed: int | None = None


class ShuffledBatches(Sampler[Draw]):
    """Batches in a new random order for each epoch; a last batch of a single image is dropped.

    An epoch has every image once, or with weights as many images as there are, drawn with replacement.

    Args:
        count: Number of images in the split.
        batch_size: Images per batch, summed over all processes.
        seed: Seed of the order and of the images' augmentation; it is combined with the epoch.
        part: Rank of this process.
        parts: Number of processes that share each batch.
        resume_at: Epoch and index of the first batch, if training resumes from a checkpoint.
        weights: Weight of each image when images are drawn with replacement, shape (count,).
        fold_of: The fold of each image. Folds take turns in the order, so that each has the same share of every batch.
        mix: Give each image a partner: image i of a batch of n, over all processes, gets image n - 1 - i.

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
        weights: Tensor | None = None,
        mix: bool = False,
        fold_of: np.ndarray | None = None,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.parts = parts
        self.resume_at = resume_at
        self.weights = weights
        self.mix = mix
        self.fold_of = fold_of
        self.epoch = resume_at[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (rest > 1)  # batch norm needs two images

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        generator = Generator().manual_seed(derive_seed(self.seed, epoch))
        order = self._order(generator)
        seeds = torch.randint(2**62, (self.count,), generator=generator)
        done = self.resume_at[1] if epoch == self.resume_at[0] else 0
        self.epoch += 1
        for batch in range(done, len(self)):
            whole_batch = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            if self.mix:
                mix_seed = derive_seed(self.seed, epoch, batch, MIXING)
                yield self._with_partners(order[whole_batch], seeds[whole_batch], mix_seed)
            else:
                positions, own_seeds = (part_of(v[whole_batch], self.part, self.parts) for v in (order, seeds))
                yield Draw(positions.tolist(), own_seeds.tolist())

    def _order(self, generator: Generator) -> Tensor:
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        return order if self.fold_of is None else order[_by_turns(self.fold_of[order.numpy()])]

    def _with_partners(self, positions: Tensor, seeds: Tensor, mix_seed: int) -> Draw:
        """Return this process's part of a batch and the partners of its images, each image once."""
        indices = torch.arange(len(positions))
        own, partners = (part_of(order, self.part, self.parts).tolist() for order in (indices, indices.flip(0)))
        needed = list(dict.fromkeys(own + partners))
        places = {index: place for place, index in enumerate(needed)}
        loaded = torch.tensor(needed, dtype=torch.long)
        return Draw(positions[loaded].tolist(), seeds[loaded].tolist(), [places[i] for i in partners], mix_seed)


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


def _by_turns(fold_of: np.ndarray) -> Tensor:
    """Return an order in which folds take turns; images of one fold keep their order.

    >>> _by_turns(np.array([0, 0, 1, 0, 1])).tolist()
    [0, 2, 1, 4, 3]
    """
    turn = np.zeros(len(fold_of), np.int64)
    for fold in np.unique(fold_of):
        turn[fold_of == fold] = np.arange((fold_of == fold).sum())
    return torch.from_numpy(np.lexsort((fold_of, turn)))


def part_of(batch: Tensor, part: int, parts: int) -> Tensor:
    """Return the images of a batch that process `part` gets: every `parts`-th one."""
    return batch[part::parts]


def balancing_weights(labels: np.ndarray) -> Tensor:
    """Return a weight for each image that makes every class equally likely, float64, shape (images,).

    >>> balancing_weights(np.array([0, 1, 0, 0])).tolist()
    [0.3333333333333333, 1.0, 0.3333333333333333, 0.3333333333333333]
    """
    return torch.from_numpy(1 / np.bincount(labels)[labels])


def derive_seed(*numbers: int) -> int:
    """Return a seed that depends on all numbers and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
