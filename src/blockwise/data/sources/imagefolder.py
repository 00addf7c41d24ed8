"""Any folder of images with one folder per class, with or without folders for the splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from blockwise.data.samples import Sample, Source, Splits, by_label, cap, fingerprint, samples_in, split_by_seed
from blockwise.data.sources.whole import check_whole, mark_whole
from blockwise.errors import InputError
from blockwise.io.download import DownloadError, download_folder

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT = "one folder of images per class, or the folders train, val (optional) and test with class folders inside"


class ImageFolder(Source):
    """Images in `root/<class>/`, split at random by seed, or in `root/{train,val,test}/<class>/`.

    If there are split folders but no `val` folder, validation images are held out of `train` by seed.

    Args:
        root: The folder.
        train_per_class: Training images per class, including those held out for validation; None uses 80 %, or the
            whole train folder if there is one.
        val_per_class: Validation images per class; None holds out a quarter of the training images, or uses the whole
            val folder if there is one.
        test_per_class: Maximum number of test images per class; None uses all.
        seed: Seed of the split.
        name: Name of the data set in records.
        url: Archive to download and unpack as `root` if it is missing.
        checksum: Hash of the archive, such as `sha256:...`; None checks nothing.
        images: Number of images in the archive; None means any.
        download: Whether to download it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        name: str = "imagefolder",
        url: str | None = None,
        checksum: str | None = None,
        images: int | None = None,
        download: bool = True,
    ) -> None:
        self.root = Path(root).expanduser()
        self.train_per_class = train_per_class
        self.val_per_class = val_per_class
        self.test_per_class = test_per_class
        self.seed = seed
        self.name = name
        self.url = url
        self.checksum = checksum
        self.images = images
        self.download = download

    def splits(self) -> Splits:
        """Find the images and return their splits; download them first if `root` is missing.

        Raises:
            InputError: The folder is missing, has another layout, or is too small for the split.
        """
        if not self.root.is_dir():
            self._fetch()
        check_whole(self.root, self.name, *([] if self.images is None else [self.images]))
        if folders := self._split_folders():
            return self._given_splits(folders)
        samples, classes = samples_in(self.root)
        if not samples:
            raise InputError(f"data.root={self.root} contains no images: it must contain {LAYOUT}")
        return split_by_seed(
            samples,
            classes,
            train_per_class=self.train_per_class,
            val_per_class=self.val_per_class,
            test_per_class=self.test_per_class,
            seed=self.seed,
        )

    def _split_folders(self) -> dict[str, Path]:
        """Return the folder of each split, matched case-insensitively; empty if `root` contains class folders."""
        entries = {entry.name.lower(): entry for entry in self.root.iterdir() if entry.is_dir()}
        folders = {s: entries[name] for s, names in SPLIT_NAMES.items() for name in names if name in entries}
        if folders and not {"train", "test"} <= set(folders):
            present, missing = ", ".join(folders), " and ".join(sorted({"train", "test"} - set(folders)))
            raise InputError(f"data.root={self.root} has {present} but no {missing}: it must contain {LAYOUT}")
        return folders

    def _given_splits(self, folders: dict[str, Path]) -> Splits:
        train, classes = samples_in(folders["train"], below=self.root)
        if not train:
            raise InputError(f"{folders['train']} contains no images: data.root must contain {LAYOUT}")
        test = self._samples(folders["test"], classes)
        everything = [*train, *test]
        if "val" in folders:
            val: Sequence[Sample] = self._samples(folders["val"], classes)
            everything += val
            val = cap(val, self.val_per_class, self.seed)
            train = list(cap(train, self.train_per_class, self.seed))
        else:
            train, val = self._hold_out(train, classes)
        capped = cap(test, self.test_per_class, self.seed)
        return Splits(tuple(classes), tuple(train), tuple(val), capped, fingerprint(everything))

    def _samples(self, folder: Path, classes: Sequence[str]) -> list[Sample]:
        samples, own = samples_in(folder, below=self.root)
        if own != list(classes):
            different = sorted(set(own) ^ set(classes))
            raise InputError(f"{folder} and the train folder do not have the same classes: {', '.join(different)}")
        return samples

    def _hold_out(self, samples: Sequence[Sample], classes: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
        capped = cap(samples, self.train_per_class, self.seed)
        members = by_label(capped)
        smallest = min((len(members.get(label, [])) for label in range(len(classes))), default=0)
        val_per_class = max(1, smallest // 4) if self.val_per_class is None else self.val_per_class
        if not 0 < val_per_class < smallest:
            raise InputError(
                f"data.val_per_class={val_per_class} does not fit: the smallest class has {smallest} training images, "
                f"so choose 1 to {max(smallest - 1, 1)}, or add a val folder"
            )
        val = cap(capped, val_per_class, self.seed)
        held = {sample.name for sample in val}
        return [sample for sample in capped if sample.name not in held], list(val)

    def _fetch(self) -> None:
        reason = ""
        if self.url and self.download:
            try:
                download_folder(self.url, self.root, self.checksum, partial(mark_whole, images=self.images))
            except (DownloadError, OSError) as error:
                reason = f" ({error})"
        if not self.root.is_dir():
            fetch = f"download {self.url} and unpack it there, or " if self.url else ""
            raise InputError(
                f"data.root={self.root} is not a folder{reason}: it must contain {LAYOUT}; {fetch}set another data.root"
            )
