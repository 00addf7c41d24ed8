"""The peers of the benchmark: the same sweep as a good engineer would write it with Lightning alone.

Both use one fit per cell, with the same splits, blocks, head, learning rate, epochs and metrics. Both freeze correctly:
frozen modules get no gradients and stay in inference mode.

- `plain`: float32; images decoded, cropped and flipped by two workers of a DataLoader.
- `tuned`: channels last, bfloat16 autocast, a fused optimizer, images decoded once for all fits and kept as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from blockwise.backbone.load import ImageSpec
from blockwise.data.samples import Sample, Splits

SPLITS = ("train", "val", "test")


class FineTuning(L.LightningModule):
    """A backbone with some trained layers, and a new head.

    Args:
        backbone: Maps images to feature vectors.
        trained: Names of the layers that train.
        num_features: Length of the feature vectors.
        num_classes: Length of the logits.
        lr: Learning rate.
        weight_decay: Weight decay of AdamW.
        fused: Whether to use the fused implementation of AdamW.
    """

    def __init__(
        self,
        backbone: nn.Module,
        trained: Sequence[str],
        num_features: int,
        num_classes: int,
        lr: float,
        weight_decay: float,
        *,
        fused: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(requires_grad=False)
        self.head = nn.Linear(num_features, num_classes)
        self.options = {"lr": lr, "weight_decay": weight_decay, "fused": fused}
        self.trained = [backbone.get_submodule(name) for name in trained]
        for layer in self.trained:
            layer.requires_grad_(requires_grad=True)
        self.accuracy = nn.ModuleDict(
            {f"{split}_top1": MulticlassAccuracy(num_classes, average="micro") for split in SPLITS}
        )

    def train(self, mode: bool = True) -> FineTuning:
        super().train(mode)
        self.backbone.eval()
        for layer in self.trained:
            layer.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        features = features.mean((2, 3)) if features.ndim == 4 else features
        return self.head(features)

    def _step(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        self.accuracy[f"{split}_top1"](logits, labels)
        self.log(f"{split}_top1", self.accuracy[f"{split}_top1"], on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(logits, labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), **self.options)


def transforms(images: ImageSpec, *, training: bool) -> v2.Compose:
    """Return the transforms after resizing: crop, flip and normalisation."""
    cut = [v2.RandomCrop(images.size), v2.RandomHorizontalFlip()] if training else [v2.CenterCrop(images.size)]
    return v2.Compose([*cut, v2.ToDtype(torch.float32, scale=True), v2.Normalize(images.mean, images.std)])


def resize(images: ImageSpec) -> v2.Compose:
    """Return the transform from a Pillow image to a square uint8 tensor."""
    side = round(images.size / images.crop_pct)
    return v2.Compose([v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(side), v2.PILToTensor()])


class Photographs(Dataset[tuple[Tensor, int]]):
    """Image files, decoded on each access or once in advance."""

    def __init__(self, samples: Sequence[Sample], images: ImageSpec, *, training: bool, decoded: bool) -> None:
        self.samples = samples
        self.resize = resize(images)
        self.transforms = transforms(images, training=training)
        self.pixels = [self._read(sample) for sample in samples] if decoded else None

    def _read(self, sample: Sample) -> Tensor:
        with Image.open(sample.image) as image:
            return self.resize(image.convert("RGB"))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self._read(self.samples[index]) if self.pixels is None else self.pixels[index]
        return self.transforms(pixels), self.samples[index].label


def loaders(
    splits: Splits, images: ImageSpec, batch_size: int, *, decoded: bool, workers: int = 2
) -> dict[str, DataLoader]:
    """Return a loader per split; files are read by workers, decoded images by none."""
    options = {"batch_size": batch_size, "num_workers": 0 if decoded else workers, "persistent_workers": not decoded}
    return {
        split: DataLoader(
            Photographs(getattr(splits, split), images, training=split == "train", decoded=decoded),
            shuffle=split == "train",
            **options,
        )
        for split in SPLITS
    }
