"""The data of a study: a data module with its name, classes and image size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from blockwise.data import BlockwiseDataModule
from blockwise.data.batches import derive_seed
from blockwise.data.loaders import FirstBatchCheck, LoaderDataModule, SeededEpochs, count_batches
from blockwise.data.resumable import SPLITS, ResumableDataModule
from blockwise.errors import InputError
from blockwise.io.class_names import read_class_names
from blockwise.results.record import DataEntry
from blockwise.tracking.progress import decoding


@dataclass(frozen=True)
class StudyData:
    """The data set of a study.

    Attributes:
        name: Name in records.
        classes: Class names, in the order of their labels.
        image_size: Side of the images in pixels.
        module: Yields batches: normalised images, shape (batch, 3, size, size), and labels, shape (batch,).
        seed: Seed of the order of a data module that is not blockwise's own; None leaves PyTorch's generator alone.
    """

    name: str
    classes: Sequence[str]
    image_size: int
    module: L.LightningDataModule
    seed: int | None = None

    @property
    def ours(self) -> bool:
        """Whether batches depend only on seed and epoch, so that training can resume within an epoch."""
        return isinstance(self.module, ResumableDataModule)

    @property
    def folds(self) -> int | None:
        """Number of folds; None if there is one split."""
        return self.module.folds if isinstance(self.module, BlockwiseDataModule) else None

    def tell(self, console: Console) -> None:
        """Print what is done to the images without a setting, and which splits are joined."""
        if isinstance(self.module, BlockwiseDataModule) and self.folds is not None:
            train, val = self.module.joined
            console.print(
                f"{self.folds} folds of {train + val:,} images: {train:,} to train and {val:,} to validate are joined",
                highlight=False,
            )
        if isinstance(self.module, BlockwiseDataModule) and self.module.crops_nothing:
            console.print(
                "data.augment=crop crops nothing: at this size, the network takes the whole image (data.crop_pct=0.875 "
                "leaves room)",
                highlight=False,
            )
        if turned := self.module.turned if isinstance(self.module, BlockwiseDataModule) else 0:
            counted = "1 image is" if turned == 1 else f"{turned:,} images are"
            console.print(f"{counted} turned upright, as the EXIF orientation says", highlight=False)

    def prepare(self, console: Console) -> None:
        """Decode the images that can be decoded up front, and report those that cannot be read.

        Raises:
            InputError: Images cannot be read, and skipping them is not allowed.
        """
        if isinstance(self.module, BlockwiseDataModule):
            if notice := self.module.notice():
                console.print(notice, highlight=False)
            with decoding(console) as begin:
                self.module.decode(begin)
            if skipped := self.module.skipped:
                console.print(f"skipping images that cannot be read: {', '.join(skipped)}", highlight=False)

    @property
    def mixed(self) -> bool:
        """Whether training batches mix images, so that their labels are probabilities."""
        return bool(getattr(self.module, "mixed", False))

    @property
    def knows_labels(self) -> bool:
        """Whether the labels of all training images are known before training."""
        return isinstance(self.module, BlockwiseDataModule)

    def class_counts(self) -> list[int] | None:
        """Return the number of training images of each class, after `prepare`; None if it is unknown."""
        return self.module.class_counts() if isinstance(self.module, BlockwiseDataModule) else None

    def callbacks(self) -> list[L.Callback]:
        """Return the callbacks that check, and seed, data that could not be checked up front."""
        if self.ours:
            return []
        seeding: list[L.Callback] = [] if self.seed is None else [SeededEpochs(self.seed)]
        return [FirstBatchCheck(len(self.classes), self.image_size), *seeding]

    def entry(self, trainer: L.Trainer) -> DataEntry:
        """Return the data entry of records, after a trainer has used the data."""
        skipped = tuple(self.module.skipped) if isinstance(self.module, BlockwiseDataModule) else ()
        return DataEntry(
            name=self.name,
            classes=len(self.classes),
            image_size=self.image_size,
            **self._counts(trainer),
            skipped=skipped,
        )

    def _counts(self, trainer: L.Trainer) -> dict[str, int]:
        if isinstance(self.module, ResumableDataModule):
            return self.module.counts()
        # a trainer that has tested no longer has its training batches
        counted = {key: count for entry in _checks(trainer) for key, count in entry.counts.items()}
        return {split: counted.get(split, 0) for split in SPLITS}

    def batches(self) -> dict[str, int]:
        """Return the number of batches per split, without decoding images."""
        if isinstance(self.module, ResumableDataModule):
            return self.module.batches()
        return {split: count_batches(loader) for split, loader in self._loaders().items()}

    def train_positions(self, epoch: int) -> tuple[int, list[Sequence[int]]] | None:
        """Return the number of training images, and the positions of those of each batch in an epoch.

        Returns:
            None if the images change from epoch to epoch, or are unknown.
        """
        return self.module.train_positions(epoch) if isinstance(self.module, BlockwiseDataModule) else None

    def first_images(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the first training images of the first epoch, as they are trained on, and their labels.

        Args:
            most: The largest number of images.
        """
        self.module.prepare_data()
        self.module.setup("fit")
        batches: list[tuple[Tensor, Tensor]] = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed or 0, 0))
            for batch in self.module.train_dataloader():
                images, labels, *_ = self.module.on_after_batch_transfer(batch, 0)
                batches.append((images, labels if labels.ndim == 1 else labels.argmax(1)))
                if sum(len(labels) for _, labels in batches) >= most:
                    break
        images, labels = (torch.cat(parts)[:most] for parts in zip(*batches, strict=True))
        return images, labels

    def batch_size(self) -> int:
        """Return the number of images per training batch."""
        if isinstance(self.module, BlockwiseDataModule):
            return self.module.batch_size
        loader = self.module.loaders["train"] if isinstance(self.module, LoaderDataModule) else self._loaders()["train"]
        return int(getattr(loader, "batch_size", None) or len(next(iter(loader))[1]))

    def _loaders(self) -> dict[str, Any]:
        self.module.prepare_data()
        for stage in ("fit", "test"):
            self.module.setup(stage)
        return {split: getattr(self.module, f"{split}_dataloader")() for split in SPLITS}


def _checks(trainer: L.Trainer) -> list[FirstBatchCheck]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, FirstBatchCheck)]


def module_classes(settings: Mapping[str, Any], module: L.LightningDataModule) -> tuple[str, ...]:
    """Return the class names of a LightningDataModule: from the settings, or else from its own attributes.

    Args:
        settings: The settings of the data, with `num_classes` and `classes`.
        module: The data module; its `num_classes` and `classes` are used where the settings have none.

    Raises:
        InputError: Neither knows the number of classes, or they do not agree.
    """
    number, names = (settings.get(key) or getattr(module, key, None) for key in ("num_classes", "classes"))
    if number is None and names is not None and not isinstance(names, str):
        number = len(names)
    if number is None:
        raise InputError(
            f"data.num_classes is missing: {type(module).__name__} has no attribute num_classes, so set "
            "data.num_classes=<number>, or data.classes=[<name>,<name>]"
        )
    if number < 2:
        raise InputError(f"data.num_classes={number} must be at least 2")
    numbers = [str(label) for label in range(int(number))]
    return tuple(numbers) if names is None else read_class_names(names, numbers)
