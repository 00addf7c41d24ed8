"""The data of a study: a data module with its name, classes and image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
from rich.console import Console

from blockwise.data import BlockwiseDataModule
from blockwise.data.loaders import FirstBatchCheck, LoaderDataModule, count_images
from blockwise.data.resumable import SPLITS, ResumableDataModule
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
    """

    name: str
    classes: Sequence[str]
    image_size: int
    module: L.LightningDataModule

    @property
    def ours(self) -> bool:
        """Whether batches depend only on seed and epoch, so that training can resume within an epoch."""
        return isinstance(self.module, ResumableDataModule)

    def tell(self, console: Console) -> None:
        """Print what is done to the images without a setting."""
        if turned := self.module.turned if isinstance(self.module, BlockwiseDataModule) else 0:
            counted = "1 image is" if turned == 1 else f"{turned:,} images are"
            console.print(f"{counted} turned upright, as the EXIF orientation says", highlight=False)

    def prepare(self, console: Console) -> None:
        """Decode the images that can be decoded up front, and report those that cannot be read.

        Raises:
            InputError: Images cannot be read, and skipping them is not allowed.
        """
        if isinstance(self.module, BlockwiseDataModule):
            with decoding(console) as begin:
                self.module.decode(begin)
            if skipped := self.module.skipped:
                console.print(f"skipping images that cannot be read: {', '.join(skipped)}", highlight=False)

    @property
    def mixed(self) -> bool:
        """Whether training batches mix images, so that their labels are probabilities."""
        return bool(getattr(self.module, "mixed", False))

    def class_counts(self) -> list[int] | None:
        """Return the number of training images of each class, after `prepare`; None if it is unknown."""
        return self.module.class_counts() if isinstance(self.module, BlockwiseDataModule) else None

    def callbacks(self) -> list[L.Callback]:
        """Return the callbacks that check data during training if it could not be checked up front."""
        return [] if self.ours else [FirstBatchCheck(len(self.classes), self.image_size)]

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
        loaders = (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)
        return {split: count_images(loader) for split, loader in zip(SPLITS, loaders, strict=True)}

    def batches(self) -> dict[str, int]:
        """Return the number of batches per split, without decoding images."""
        if isinstance(self.module, ResumableDataModule):
            return self.module.batches()
        return {split: len(loader) for split, loader in self._loaders().items()}

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
