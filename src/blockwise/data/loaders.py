"""User-supplied data for a study: three DataLoaders, or any LightningDataModule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Generator, Tensor

from blockwise.data.batches import derive_seed, part_of
from blockwise.data.resumable import SPLITS, ResumableDataModule
from blockwise.errors import InputError

Batch = tuple[Tensor, Tensor]
NO_LENGTH = "loaders need a length: give iterable data sets a __len__"


class LoaderDataModule(ResumableDataModule):
    """Three DataLoaders as a LightningDataModule whose batches depend only on seed and epoch.

    Shuffling and random augmentation draw from PyTorch's generator, which is seeded here for each epoch and batch. So a
    run that resumes in the middle of an epoch sees the same batches as an uninterrupted one. A cell trains on the same
    batches alone and beside other cells. Several processes share each batch.

    Args:
        loaders: Loaders (or other iterables with a length) under the keys `train`, `val` and `test`.
        seed: Seed of the order if the loaders shuffle.
    """

    def __init__(self, loaders: Mapping[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.loaders = loaders
        self.seed = seed
        # generators that belong to a loader: seed the epochs from them and restore their state afterwards
        self._generators = {split: [(g, g.get_state()) for g in _generators(loaders[split])] for split in SPLITS}

    def counts(self) -> dict[str, int]:
        """Return the number of images per split; 0 if it is unknown."""
        return {split: count_images(self.loaders[split]) for split in SPLITS}

    def train_dataloader(self) -> Iterable[Batch]:
        """Return the training batches."""
        return _Batches(self, "train")

    def val_dataloader(self) -> Iterable[Batch]:
        """Return the validation batches."""
        return _Batches(self, "val")

    def test_dataloader(self) -> Iterable[Batch]:
        """Return the test batches."""
        return _Batches(self, "test")

    def batches(self) -> dict[str, int]:
        """Return the number of batches per split."""
        return {split: len(self.loaders[split]) for split in SPLITS}

    def iterate(self, split: str) -> Iterator[Batch]:
        """Yield this process's part of each batch of a split, in the current epoch."""
        part, parts = self.part()
        training = split == "train"
        epoch = self.trainer.current_epoch if training and self.trainer is not None else 0
        first = self.resume_at[1] if training and epoch == self.resume_at[0] else 0
        number = SPLITS.index(split)
        for generator, state in self._generators[split]:
            generator.set_state(state)
            generator.manual_seed(derive_seed(generator.initial_seed(), epoch))
        try:
            iterator = _seeded(derive_seed(self.seed, number, epoch), lambda: iter(self.loaders[split]))
            for index in range(len(self.loaders[split])):
                seed = derive_seed(self.seed, number, epoch, index)
                batch = _seeded(seed, lambda: next(iterator, None))
                if batch is None:
                    return
                if index >= first:
                    yield batch if parts == 1 else tuple(part_of(values, part, parts) for values in batch)  # type: ignore[misc]
        finally:
            for generator, state in self._generators[split]:
                generator.set_state(state)


class _Batches:
    """The batches of one split: an iterable with a length, as a trainer needs it."""

    def __init__(self, data: LoaderDataModule, split: str) -> None:
        self._data, self._split = data, split

    def __iter__(self) -> Iterator[Batch]:
        return self._data.iterate(self._split)

    def __len__(self) -> int:
        return len(self._data.loaders[self._split])


class FirstBatchCheck(L.Callback):
    """Checks the first batch of each split when training reaches it, for data that cannot be checked up front.

    Attributes:
        counts: Number of images of each split that was reached; 0 if it is unknown.
    """

    def __init__(self, num_classes: int, size: int) -> None:
        self._expected = num_classes, size
        self.counts: dict[str, int] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the number of batches is known."""
        check_lengths(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Check the first training batch."""
        self._check("train", trainer.train_dataloader, batch, batch_idx)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Check the first validation batch."""
        self._check("val", trainer.val_dataloaders, batch, batch_idx)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Check the first test batch."""
        self._check("test", trainer.test_dataloaders, batch, batch_idx)

    def _check(self, split: str, loader: Any, batch: Any, index: int) -> None:
        if index == 0 and split not in self.counts:
            self.counts[split] = count_images(loader)
            check_batch(split, batch, *self._expected)


class SeededEpochs(L.Callback):
    """Seeds PyTorch's generator before each epoch and after each batch.

    So order and random transforms of images depend on the seed, the epoch and the batch alone, not on what the cells
    have drawn for dropout.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Seed the generator, from which the batches of this epoch are drawn next."""
        torch.default_generator.manual_seed(derive_seed(self.seed, trainer.current_epoch))
        if trainer.current_epoch == 0 or getattr(trainer.fit_loop, "is_resuming", False):
            # Lightning has begun the batches of a fit's first epoch before this hook; those of others it has not
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Seed the generator, from which the next batch is drawn."""
        torch.default_generator.manual_seed(derive_seed(self.seed, trainer.current_epoch, batch_idx + 1))


def check_data(data: Any) -> None:
    """Check that data has all three splits.

    Raises:
        InputError: A split is missing, or the data has the wrong type.
    """
    if isinstance(data, L.LightningDataModule):
        missing = [split for split in SPLITS if not is_overridden(f"{split}_dataloader", data, L.LightningDataModule)]
    elif isinstance(data, Mapping):
        missing = [split for split in SPLITS if data.get(split) is None]
    else:
        raise InputError("data must be a LightningDataModule, or a mapping of DataLoaders: train, val and test")
    if missing:
        raise InputError(f"data lacks {', '.join(missing)}: train, val and test are required")


def check_lengths(trainer: L.Trainer) -> None:
    """Check that the loaders of a trainer have a length, which schedules and the progress display need.

    Raises:
        InputError: One has none.
    """
    batches = [trainer.num_training_batches, *trainer.num_val_batches]
    if any(math.isinf(number) for number in batches):
        raise InputError(NO_LENGTH)


def count_batches(loader: Any) -> int:
    """Return the number of batches of a loader.

    Raises:
        InputError: It has no length.
    """
    try:
        return len(loader)
    except TypeError as error:
        raise InputError(NO_LENGTH) from error


def check_loaders(data: Mapping[str, Any], num_classes: int, size: int) -> None:
    """Check the first batch of each split without changing the state of PyTorch's generator.

    Raises:
        InputError: There is no batch, or `check_batch` refuses it.
    """
    for split in SPLITS:
        states = [(generator, generator.get_state()) for generator in _generators(data[split])]
        with torch.random.fork_rng(devices=[]):
            try:
                batch = next(iter(data[split]))
                len(data[split])
            except (StopIteration, TypeError) as error:
                raise InputError(f"data[{split!r}] yields no batch, or has no length") from error
            finally:
                for generator, state in states:
                    generator.set_state(state)
        check_batch(split, batch, num_classes, size)


def check_batch(split: str, batch: Any, num_classes: int, size: int) -> None:
    """Check a batch: floating-point images, shape (batch, 3, size, size), and integer labels, shape (batch,).

    Raises:
        InputError: Type, shape or labels are wrong.
    """
    if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise InputError(f"{split} batches must be pairs of tensors, images and labels")
    images, labels = batch
    if not images.is_floating_point() or images.shape[1:] != (3, size, size):
        raise InputError(
            f"{split} images must be floating-point tensors of shape (batch, 3, {size}, {size}), "
            f"not {images.dtype} of shape {tuple(images.shape)}"
        )
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise InputError(
            f"{split} labels must be torch.long of shape (batch,), not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InputError(f"{split} labels must be between 0 and {num_classes - 1} for {num_classes} classes")


def _seeded(seed: int, function: Any) -> Any:
    """Call a function with PyTorch's generator seeded, then restore the generator's state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return function()


def _generators(loader: Any) -> list[Generator]:
    """Return the generators of a loader and its samplers."""
    owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    owners.append(getattr(owners[-1], "sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in generators if isinstance(g, Generator)}.values())


def count_images(loader: Any) -> int:
    """Return the number of images of a loader; 0 if it is unknown."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return 0
