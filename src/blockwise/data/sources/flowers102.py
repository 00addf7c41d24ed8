"""Oxford Flowers 102 with its official split (Nilsback & Zisserman, 2008)."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from blockwise.data.samples import Sample, Source, Splits, cap, fingerprint
from blockwise.errors import InputError


class Flowers102(Source):
    """102 classes; 1,020 training, 1,020 validation and 6,149 test images; `*_per_class` caps a split."""

    name = "flowers102"

    def __init__(
        self,
        root: str | Path,
        *,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        self.root = Path(root).expanduser()
        self.sizes = {"train": train_per_class, "val": val_per_class, "test": test_per_class}
        self.seed = seed
        self.download = download

    def splits(self) -> Splits:
        """Return the official splits; download the data first if it is missing (files are checked by MD5 sum).

        Raises:
            InputError: The data is missing or damaged.
        """
        reason = "data.download=false"
        try:
            datasets.Flowers102(self.root, download=self.download)
        except Exception as error:
            if self.download:
                reason = f"the download failed: {error}"
            folder = self.root / "flowers-102"
            raise InputError(
                f"Oxford Flowers 102 is not in {folder} ({reason}): download 102flowers.tgz, imagelabels.mat and "
                "setid.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ to that folder and unpack the "
                "archive there (to jpg/), or set data.root=<folder that contains flowers-102>"
            ) from error
        official = {split: self._official(split) for split in self.sizes}
        train, val, test = (cap(official[split], self.sizes[split], self.seed) for split in ("train", "val", "test"))
        everything = [sample for part in official.values() for sample in part]
        return Splits(tuple(str(label) for label in range(102)), train, val, test, fingerprint(everything))

    def _official(self, split: str) -> list[Sample]:
        dataset = datasets.Flowers102(self.root, split=split)
        files = [Path(file) for file in dataset._image_files]
        return [Sample(file.name, label, file) for file, label in zip(files, dataset._labels, strict=True)]
