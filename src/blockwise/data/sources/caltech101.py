"""Caltech-101 in torchvision's layout (Li et al., 2004)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockwise.data.samples import Source, Splits, samples_in, split_by_seed
from blockwise.data.sources.whole import check_whole, mark_whole
from blockwise.errors import InputError
from blockwise.io.download import DownloadError, download, making_folder, unpack

BACKGROUND = "BACKGROUND_Google"
URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
CHECKSUM = "md5:3138e1922a9193bfa496528edbbc45d0"  # as in torchvision
# with the background class; and without it, as some keep it
IMAGES, FOLDERS = 9144, 102
IMAGES_WITHOUT_BACKGROUND = 8677


class Caltech101(Source):
    """101 categories, without the background class, split at random by seed."""

    name = "caltech101"

    def __init__(
        self,
        root: str | Path,
        *,
        train_per_class: int | None = 30,
        val_per_class: int | None = 5,
        test_per_class: int | None = None,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        self.folder = Path(root).expanduser() / "caltech101" / "101_ObjectCategories"
        self.sizes: dict[str, Any] = {
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "test_per_class": test_per_class,
        }
        self.seed = seed
        self.download = download

    def splits(self) -> Splits:
        """Return the splits; download the images first if they are missing.

        Raises:
            InputError: The images are missing or incomplete, or a class is too small for the split.
        """
        if not self.folder.is_dir():
            self._fetch()
        check_whole(self.folder, self.name, IMAGES, IMAGES_WITHOUT_BACKGROUND)
        samples, classes = samples_in(self.folder, without=[BACKGROUND])
        if not samples:
            raise InputError(f"{self.folder} contains no images: it must contain one folder of images per category")
        return split_by_seed(samples, classes, **self.sizes, seed=self.seed)

    def _fetch(self) -> None:
        reason = "data.download=false"
        if self.download:
            try:
                with making_folder(self.folder) as made:
                    if made is not None:
                        self._download(made)
            except (DownloadError, OSError) as error:
                reason = str(error)
        if not self.folder.is_dir():
            raise InputError(
                f"Caltech-101 is not in {self.folder} ({reason}): download caltech-101.zip from "
                "https://data.caltech.edu/records/mzrjq-6wc02 and unpack it so that this folder contains one folder of "
                "images per category, or set data.root=<folder that contains caltech101>"
            )

    @staticmethod
    def _download(folder: Path) -> None:
        """Download the images as `folder`; they are in an archive inside an archive."""
        outer, inner = folder.with_name("caltech-101.zip"), folder.with_name("outer")
        download(URL, outer, CHECKSUM)
        unpack(outer, inner)
        archive = inner / "caltech-101" / "101_ObjectCategories.tar.gz"
        unpack(archive, folder.with_name("images"))
        (folder.with_name("images") / folder.name).rename(folder)
        mark_whole(folder, IMAGES, FOLDERS)
