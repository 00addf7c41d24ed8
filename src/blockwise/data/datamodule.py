"""The data module: images are decoded to uint8, once if there is room; augmentation runs on the device of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from blockwise.backbone.load import ImageSpec
from blockwise.data.augment import LIGHT, Augmentation, Element, expand
from blockwise.data.batches import Draw, OrderedBatches, ShuffledBatches, balancing_weights
from blockwise.data.folds import assign_folds, check_apart
from blockwise.data.mixing import draw_mix, mix_batch
from blockwise.data.pixels import Decoded, Pixels
from blockwise.data.pixels.cache import PixelCache
from blockwise.data.pixels.on_demand import (
    OnDemand,
    decode_on_demand,
    decode_without_cache,
    fit_in_memory,
    usual_workers,
)
from blockwise.data.pixels.on_device import copy_to_device
from blockwise.data.resumable import SPLITS, ResumableDataModule
from blockwise.data.samples import Sample, Source
from blockwise.errors import InputError, did_you_mean
from blockwise.io.hashes import remembering
from blockwise.io.names import some

# images and labels; with folds, also the fold of each image
Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Sequence[int]]
# pixels, labels, and the seeds of the images' augmentation; if images are mixed, also the seed of it and the partners;
# with folds, the fold of each image instead
Drawn = tuple[Tensor, Tensor, Sequence[int]] | tuple[Tensor, Tensor, Sequence[int], tuple[int, Sequence[int]]]
SAMPLERS = ("shuffle", "balanced")


class BlockwiseDataModule(ResumableDataModule):
    """Batches of normalised images, shape (batch, 3, size, size), and their labels, shape (batch,).

    With `mixup` or `cutmix`, labels of training batches are probabilities, float32, shape (batch, classes).

    Args:
        source: The data set.
        images: Size and normalisation of the images, from the backbone.
        batch_size: Images per batch.
        augment: Random augmentation of training images: a preset (`none`, `light`, `trivialaugment`, `randaugment`,
            `colour`), or a list of names (`crop`, `flip`, `trivialaugment`, `randaugment`, `colour`), of mappings with
            `_target_`, and of transforms of uint8 images, shape (3, height, width).
        mixup: Alpha of MixUp's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's Beta distribution; 0 is off. If both are on, each batch uses one of them.
        sampler: `shuffle` takes each training image once per epoch; `balanced` draws classes with equal probability.
        seed: Seed of order and augmentation.
        num_workers: Number of worker processes; decoded images are read quickly, so 0 is fast. If images are decoded on
            demand, 0 means as many as there are cores.
        skip_broken: Skip images that cannot be read.
        cache: Disk cache of decoded images for later runs; None caches nothing.
        folds: Join training and validation images and divide them into this many folds, each held out once; None trains
            on the first and validates on the second.
        groups: A regular expression: images in whose names its parentheses match the same text are in the same fold.
        gpu_bytes: Keep the decoded images in the memory of a GPU if they take at most this many bytes.

    Raises:
        InputError: A split is empty, there is only one class, or the batch size, the augmentation, the mixing or the
            sampler is invalid.
    """

    def __init__(
        self,
        source: Source,
        images: ImageSpec,
        *,
        batch_size: int = 32,
        augment: Element | Sequence[Element] = LIGHT,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        sampler: str = "shuffle",
        seed: int = 0,
        num_workers: int = 0,
        skip_broken: bool = False,
        cache: PixelCache | None = None,
        folds: int | None = None,
        groups: str | None = None,
        gpu_bytes: int = 0,
    ) -> None:
        super().__init__()
        with remembering(None if cache is None else cache.folder):
            self.splits = source.splits()
        self.folds, self.groups = folds, groups
        self.joined = len(self.splits.train), len(self.splits.val)
        self._fold_of: np.ndarray | None = None
        if folds is not None:
            both = self.splits.train + self.splits.val
            self.splits = replace(self.splits, train=both, val=both)
            seed_of_split = getattr(source, "seed", seed)
            self._fold_of = assign_folds(both, self.splits.classes, folds, seed_of_split, groups)
            if groups is not None:
                check_apart(both, self.splits.test, groups)
        self.images = images
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skip_broken = skip_broken
        self.cache = cache
        self._gpu_bytes = gpu_bytes
        self._on_gpu: Tensor | None = None
        self._places: dict[str, Pixels] = {}
        self.skipped: list[str] = []
        self._decoded: dict[str, _Images] = {}
        self.seed = seed
        self.augment = tuple(expand(augment))
        self._augment = Augmentation(self.augment, images.size, self.images.resized)
        self.mixup, self.cutmix, self.sampler = float(mixup), float(cutmix), sampler
        self._check_settings(source.name)

    def _check_settings(self, name: str) -> None:
        for split in SPLITS:
            if not getattr(self.splits, split):
                raise InputError(f"the data set {name} has no images in its {split} split")
        if len(self.splits.classes) < 2:
            raise InputError(f"the data set {name} has only one class ({self.splits.classes[0]!r})")
        most = len(self.splits.train)
        if not 2 <= self.batch_size <= most:
            raise InputError(
                f"data.batch_size={self.batch_size} does not fit the {most} training images of {name}: "
                f"choose 2 to {most}"
            )
        for key, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha and self.folds:
                raise InputError(
                    f"data.folds={self.folds} cannot be combined with data.{key}: images are mixed across folds"
                )
            if not 0 <= alpha < math.inf:
                raise InputError(f"data.{key}={alpha} must be a number of at least 0")
        if self.sampler not in SAMPLERS:
            raise InputError(
                f"data.sampler={self.sampler} is unknown: choose {' or '.join(SAMPLERS)}."
                f"{did_you_mean(self.sampler, SAMPLERS)}"
            )

    def setup(self, stage: str | None = None) -> None:
        """Decode all images, unless `decode` has been called already; copy them to the GPU if there is one."""
        super().setup(stage)
        self.decode()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type == "cuda" and self._bytes() <= self._gpu_bytes and not self.on_demand:
            splits = {split: images.pixels for split, images in self._decoded.items()}
            self._on_gpu = None  # those of a run that ended with an error: memory may be scarce
            different = {id(pixels): pixels for pixels in splits.values()}  # folds train and validate on the same
            self._on_gpu, places = copy_to_device(list(different.values()), device)
            place_of = dict(zip(different, places, strict=True))
            self._places = {split: place_of[id(pixels)] for split, pixels in splits.items()}

    def teardown(self, stage: str | None = None) -> None:
        """Remove the images from the GPU."""
        del stage
        self._on_gpu, self._places = None, {}

    def decode(self, begin: Callable[[int], Callable[[], None]] = lambda _total: lambda: None) -> None:
        """Decode all images; later calls do nothing.

        Args:
            begin: Called with the number of images; returns a function that is called once per image.

        Raises:
            InputError: Images cannot be read and `skip_broken` is False, or too few images are left.
        """
        if self._decoded:
            return
        parts, side = self._parts(), self.images.resized
        report = begin(sum(len(part) for part in parts.values()))
        broken: list[tuple[str, str]] = []
        for split, samples in parts.items():
            pixels, reasons = self._decode(samples, side, report)
            broken += [(samples[index].name, reason) for index, reason in sorted(reasons.items())]
            labels = np.array([sample.label for sample in samples])
            kept = np.delete(np.arange(len(samples)), list(reasons))
            self._decoded[split] = _Images(pixels, labels[kept], kept, None if split == "test" else self._fold_of)
        if self.folds is not None:
            self._decoded["val"] = self._decoded["train"]
        self.skipped = [name for name, _ in broken]
        self._check(broken)
        trained = set(self._decoded["train"].labels.tolist())
        if lost := [name for label, name in enumerate(self.splits.classes) if label not in trained]:
            raise InputError(f"these classes have no readable training images: {', '.join(lost)}")

    def _parts(self) -> dict[str, Sequence[Sample]]:
        """Return the images of each split; with folds, those to train validate as well, and count once."""
        splits = [split for split in SPLITS if split != "val" or self.folds is None]
        return {split: getattr(self.splits, split) for split in splits}

    def _decode(self, samples: Sequence[Sample], side: int, report: Callable[[], None]) -> Decoded:
        options = (side, self.images.interpolation, report)
        if not self.on_demand:
            if self.cache is None:
                return decode_without_cache(samples, *options)
            return self.cache.decode(samples, self.splits.fingerprint, *options)
        if self.cache is None:
            return decode_on_demand(samples, *options)
        broken = self.cache.check(samples, self.splits.fingerprint, *options)
        return OnDemand(samples, side, self.images.interpolation), broken

    @property
    def on_demand(self) -> bool:
        """Whether images are decoded each time they are read, since their pixels fit neither the cache nor memory."""
        if self.cache is None or self._given:
            return not fit_in_memory(self._bytes())
        return self._bytes() > self.cache.max_bytes

    @property
    def _given(self) -> bool:
        """Whether the source gives pixels, which no cache keeps, instead of files."""
        return any(isinstance(sample.image, np.ndarray) for sample in self.splits.train)

    def _bytes(self) -> int:
        """Return the size of all decoded images."""
        return 3 * self.images.resized**2 * sum(map(len, self._parts().values()))

    def _workers(self) -> int:
        """Return the number of processes that decode on demand."""
        return self.num_workers or usual_workers(3 * self.images.resized**2 * self.batch_size)

    def notice(self) -> str | None:
        """Return what will be slow about these images, and which setting avoids it; None if nothing will be."""
        if self._decoded or not self.on_demand or self._given:
            return None
        size = f"{self._bytes() / 1e9:.3g} GB"
        if self.cache is None:
            place, advice = "without a cache", "set cache.folder"
        else:
            place = f"more than cache.max_gb={self.cache.max_bytes / 1e9:g}"
            advice = f"cache.max_gb={math.ceil(self._bytes() / 1e9)}"
        return (
            f"images are decoded as they are read, by {self._workers()} worker processes, since "
            f"their pixels take {size}, {place}: {advice} to decode them once, if the disk has room"
        )

    def _check(self, broken: list[tuple[str, str]]) -> None:
        if broken and not self.skip_broken:
            self._decoded.clear()
            named = some([f"{name} ({reason})" for name, reason in broken], between="; ")
            raise InputError(
                f"{len(broken)} image(s) cannot be read: {named}; repair or remove them, or skip them with "
                "data.skip_broken=true"
            )
        for split, left in self.counts().items():
            if left < (self.batch_size if split == "train" else 1):
                raise InputError(f"with data.skip_broken=true, only {left} readable images are left in {split}")

    def counts(self) -> dict[str, int]:
        """Return the number of readable images per split."""
        return {split: len(pixels) for split, pixels in self._decoded.items()}

    @property
    def turned(self) -> int:
        """Number of images that decoding makes upright, as their EXIF orientation says."""
        return sum(sample.orientation != 1 for samples in self._parts().values() for sample in samples)

    @property
    def mixed(self) -> bool:
        """Whether training images are mixed, so that their labels are probabilities."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def crops_nothing(self) -> bool:
        """Whether training images are cropped at random, but are no larger than the crop."""
        return "crop" in self.augment and self.images.resized == self.images.size

    def class_counts(self) -> list[int]:
        """Return the number of readable training images of each class."""
        labels = self._decoded["train"].labels
        return [int(count) for count in np.bincount(labels, minlength=len(self.splits.classes))]

    def batches(self) -> dict[str, int]:
        """Return the number of batches per split; images need not be decoded for it."""
        train = ShuffledBatches(len(self.splits.train), self.batch_size, self.seed)
        rest = {split: OrderedBatches(len(getattr(self.splits, split)), self.batch_size) for split in ("val", "test")}
        return {"train": len(train), **{split: len(batches) for split, batches in rest.items()}}

    def train_dataloader(self) -> DataLoader[Drawn]:
        """Return the training batches, drawn anew in each epoch; several processes share each batch."""
        train = self._decoded["train"]
        batches = ShuffledBatches(
            len(train),
            self.batch_size,
            self.seed,
            *self.part(),
            resume_at=self.resume_at,
            weights=balancing_weights(train.labels) if self.sampler == "balanced" else None,
            mix=self.mixed,
            fold_of=None if train.fold_of is None else train.fold_of[train.kept],
        )
        return self._loader("train", batches)

    def train_positions(self, epoch: int) -> tuple[int, list[Sequence[int]]] | None:
        """Return the number of training images, and the positions of those of each batch of this process in an epoch.

        Returns:
            None if a training image is not the same in every epoch, because it is augmented or mixed, or if the images
            are not decoded.
        """
        if self.augment or self.mixed or not self._decoded:
            return None
        loader = self.train_dataloader()
        batches = loader.sampler
        assert isinstance(batches, ShuffledBatches)
        batches.resume_at = (epoch, 0)
        batches.set_epoch(epoch)
        return len(self._decoded["train"]), [draw.positions for draw in batches]

    def val_dataloader(self) -> DataLoader[Drawn]:
        """Return the validation batches."""
        return self._loader("val", OrderedBatches(len(self._decoded["val"]), self.batch_size, *self.part()))

    def test_dataloader(self) -> DataLoader[Drawn]:
        """Return the test batches."""
        return self._loader("test", OrderedBatches(len(self._decoded["test"]), self.batch_size, *self.part()))

    def _loader(self, split: str, batches: Sampler[Draw]) -> DataLoader[Drawn]:
        images = self._decoded[split]
        workers = self._workers() if isinstance(images.pixels, OnDemand) else self.num_workers
        if split in self._places:
            images, workers = replace(images, pixels=self._places[split]), 0
        return DataLoader(
            images,
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment, normalise and mix a batch after it was moved to the device as uint8."""
        del dataloader_idx
        pixels, labels, seeds, *mixing = batch
        # of images that are on the GPU already, a batch has the places
        pixels, places = (pixels, None) if self._on_gpu is None else (self._on_gpu, pixels)
        images = normalise(self._augment(pixels, seeds, places), self.images)
        if self._fold_of is not None and mixing:
            return images, labels, mixing[0]
        if not mixing:
            return images, labels
        seed, partners = mixing[0]
        mix = draw_mix(seed, self.mixup, self.cutmix, self.images.size)
        return mix_batch(images, labels, partners, len(self.splits.classes), mix)


def normalise(pixels: Tensor, images: ImageSpec) -> Tensor:
    """Return normalised images, float32 in channels-last format, from uint8 pixels, shape (batch, 3, size, size)."""
    mean, std = (_per_channel(values, pixels.device) for values in (images.mean, images.std))
    # in place: a batch of floats is large, and new memory for each step took half of the time
    floats = pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)
    return floats.contiguous(memory_format=torch.channels_last)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one number per channel; once per device, since a copy to a GPU waits for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class _Images(Dataset[Drawn]):
    """The images of a split that can be read; an index is the `Draw` of a whole batch."""

    pixels: Pixels
    labels: np.ndarray
    kept: np.ndarray
    fold_of: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, draw: Draw) -> Drawn:
        positions = list(draw.positions)
        pixels = torch.from_numpy(self.pixels[self.kept[positions].tolist()])
        drawn = pixels, torch.from_numpy(self.labels[positions]), list(draw.seeds)
        if self.fold_of is not None:
            return (*drawn, self.fold_of[self.kept[positions]].tolist())
        return drawn if draw.mix_seed is None else (*drawn, (draw.mix_seed, list(draw.partners)))
