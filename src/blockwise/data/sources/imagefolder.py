"""Folders of images with one folder per class, with or without folders for the splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from blockwise.data.samples import SPLIT_NAMES, Sample, Source, Splits, samples_in, split_as_given, split_by_seed
from blockwise.data.sources.whole import check_whole, mark_whole
from blockwise.errors import InputError
from blockwise.io.download import DownloadError, download_folder

LAYOUT = "one folder of images per class, or the folders train, val (optional) and test with class folders inside"


class ImageFolder(Source):
    """Images in `root/<class>/`, split at random by seed, or in `root/{train,val,test}/<class>/`.

    If there are split folders but no `val` folder, validation images are held out of `train` by seed.

    Args:
        root: The folder, or several; class folders of the same name are one class.
        train_per_class: Training images per class, including those held out for validation; None uses 80 %, or the
            whole train folder if there is one.
        val_per_class: Validation images per class; None holds out a quarter of the training images, or uses the whole
            val folder if there is one.
        test_per_class: Maximum number of test images per class; None uses all.
        seed: Seed of the split.
        classes: File with the names of the classes, see `read_class_names`; None takes the names of the folders.
        groups: Images in whose names the parentheses of this expression match the same text do not both train and
            test, if they are split by seed.
        name: Name of the data set in records.
        url: Archive to download and unpack as `root` if it is missing.
        checksum: Hash of the archive, such as `sha256:...`; None checks nothing.
        num_images: Number of images in the archive; None means any.
        download: Whether to download it.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        *,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        classes: str | Path | None = None,
        groups: str | None = None,
        name: str = "imagefolder",
        url: str | None = None,
        checksum: str | None = None,
        num_images: int | None = None,
        download: bool = True,
    ) -> None:
        self.roots = [Path(folder).expanduser() for folder in ([root] if isinstance(root, (str, Path)) else root)]
        self.sizes = {
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "test_per_class": test_per_class,
        }
        self.seed = seed
        self.classes = classes
        self.groups = groups
        self.name = name
        self.url = url
        self.checksum = checksum
        self.num_images = num_images
        self.download = download

    def splits(self) -> Splits:
        """Find the images and return their splits; download them first if `root` is missing.

        Raises:
            InputError: A folder is missing, has another layout, or is too small for the split.
        """
        for root in self.roots:
            if not root.is_dir():
                self._fetch(root)
            check_whole(root, self.name, *([] if self.num_images is None else [self.num_images]))
        _check_overlap(self.roots)
        layouts = [_split_folders(root) for root in self.roots]
        for root, layout in zip(self.roots, layouts, strict=True):
            if layout.keys() != layouts[0].keys():
                raise InputError(f"{self.roots[0]} and {root} do not have the same folders for the splits")
        if layouts[0]:
            parts, classes = self._given(layouts)
            splits = split_as_given(parts, classes, **self.sizes, seed=self.seed)
        else:
            samples, classes = self._samples(self.roots)
            splits = split_by_seed(samples, classes, **self.sizes, seed=self.seed, groups=self.groups)
        return splits.with_names(self.classes)

    def _given(self, layouts: Sequence[dict[str, Path]]) -> tuple[dict[str, list[Sample]], list[str]]:
        """Return the images of each split, and the class names."""
        parts: dict[str, list[Sample]] = {}
        parts["train"], classes = self._samples([layout["train"] for layout in layouts])
        for split in (split for split in layouts[0] if split != "train"):
            parts[split], own = self._samples([layout[split] for layout in layouts])
            if own != classes:
                different = ", ".join(sorted(set(own) ^ set(classes)))
                raise InputError(f"{layouts[0][split]} and the train folder do not have the same classes: {different}")
        return parts, classes

    def _samples(self, folders: Sequence[Path]) -> tuple[list[Sample], list[str]]:
        """Return the images in folders that contain class folders, one folder per root, and the class names."""
        found = [samples_in(folder, below=root) for folder, root in zip(folders, self.roots, strict=True)]
        for folder, (samples, _) in zip(folders, found, strict=True):
            if not samples:
                raise InputError(f"{folder} contains no images: data.root must contain {LAYOUT}")
        return found[0] if len(found) == 1 else _merge(found)

    def _fetch(self, root: Path) -> None:
        reason = ""
        if self.url and self.download and len(self.roots) == 1:
            try:
                download_folder(self.url, root, self.checksum, partial(mark_whole, images=self.num_images))
            except (DownloadError, OSError) as error:
                reason = f" ({error})"
        if not root.is_dir():
            fetch = f"download {self.url} and unpack it there, or " if self.url else ""
            raise InputError(
                f"data.root={root} is not a folder{reason}: it must contain {LAYOUT}; {fetch}set another data.root"
            )


def _check_overlap(roots: Sequence[Path]) -> None:
    for number, root in enumerate(roots):
        for other in [*roots[:number], *roots[number + 1 :]]:
            if root.resolve().is_relative_to(other.resolve()):
                raise InputError(f"data.root lists {other} and {root}, which share images: leave one of them out")


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, matched case-insensitively; empty if `root` contains class folders."""
    folders: dict[str, Path] = {}
    for split, words in SPLIT_NAMES.items():
        own = sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name.lower() in words)
        if len(own) > 1:
            raise InputError(f"{own[0]} and {own[1]} are both the {split} split: remove one of them")
        if own:
            folders[split] = own[0]
    if folders and not {"train", "test"} <= set(folders):
        present, missing = ", ".join(folders), " and ".join(sorted({"train", "test"} - set(folders)))
        raise InputError(f"data.root={root} has {present} but no {missing}: it must contain {LAYOUT}")
    return folders


def _merge(found: Sequence[tuple[list[Sample], list[str]]]) -> tuple[list[Sample], list[str]]:
    """Return the samples and classes of several roots; names begin with the position of the root.

    The folders themselves may be called otherwise on another machine, and two of them may be called the same.
    """
    classes = sorted(set().union(*(names for _, names in found)))
    labels = {name: label for label, name in enumerate(classes)}
    samples = [
        Sample(f"{number}/{sample.name}", labels[names[sample.label]], sample.image)
        for number, (own, names) in enumerate(found, start=1)
        for sample in own
    ]
    return samples, classes
