"""Any folder of images: one folder a class, with or without split folders above them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from blockwise.data.samples import Sample, Source, Splits, cap, fingerprint, samples_in, split_by_seed
from blockwise.errors import InputError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT = "one folder of images a class, or the folders train, val (optional) and test with these inside"


class ImageFolder(Source):
    """`root/<class>/*` split by seed, or `root/{train,val,test}/<class>/*` as given.

    Without a `val` folder, validation images are held out of `train` by seed.

    Args:
        root: The folder.
        train_per_class: Images of a class to train on, those held out for validation included; None: 80 %, or all
            of a given train folder.
        val_per_class: How many of them are held out for validation; None: a quarter.
        test_per_class: At most so many are tested; None: all.
        seed: Another seed, another split.
        name: What records call the data set.
        url: An archive to fetch into the folder above where `root` is missing.
        download: Whether to fetch it.
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
        download: bool = True,
    ) -> None:
        self.root = Path(root).expanduser()
        self.train_per_class = train_per_class
        self.val_per_class = val_per_class
        self.test_per_class = test_per_class
        self.seed = seed
        self.name = name
        self.url = url
        self.download = download

    def splits(self) -> Splits:
        """Find the images."""
        if not self.root.is_dir():
            self._fetch()
        if folders := self._split_folders():
            return self._given_splits(folders)
        samples, classes = samples_in(self.root)
        if not samples:
            raise InputError(f"data.root={self.root} holds no images: it must hold {LAYOUT}")
        return split_by_seed(
            samples,
            classes,
            train_per_class=self.train_per_class,
            val_per_class=self.val_per_class,
            test_per_class=self.test_per_class,
            seed=self.seed,
        )

    def _split_folders(self) -> dict[str, Path]:
        """Return the folders of the splits, whatever case they are written in; none where `root` holds classes."""
        entries = {entry.name.lower(): entry for entry in self.root.iterdir() if entry.is_dir()}
        found = {s: entries[name] for s, names in SPLIT_NAMES.items() for name in names if name in entries}
        if found and not {"train", "test"} <= set(found):
            have, lacks = ", ".join(found), " and ".join(sorted({"train", "test"} - set(found)))
            raise InputError(f"data.root={self.root} has {have} but no {lacks}: it must hold {LAYOUT}")
        return found

    def _given_splits(self, folders: dict[str, Path]) -> Splits:
        train, classes = samples_in(folders["train"], below=self.root)
        if not train:
            raise InputError(f"{folders['train']} holds no images: data.root must hold {LAYOUT}")
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
            odd = sorted(set(own) ^ set(classes))
            raise InputError(f"{folder} and the train folder differ in their classes: {', '.join(odd)}")
        return samples

    def _hold_out(self, samples: Sequence[Sample], classes: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
        capped = cap(samples, self.train_per_class, self.seed)
        smallest = min((sum(s.label == label for s in capped) for label in range(len(classes))), default=0)
        val_per_class = max(1, smallest // 4) if self.val_per_class is None else self.val_per_class
        if not 0 < val_per_class < smallest:
            raise InputError(
                f"data.val_per_class={val_per_class} does not fit: the smallest class to train on has "
                f"{smallest} images, so choose 1 to {max(smallest - 1, 1)}, or give a val folder"
            )
        val = cap(capped, val_per_class, self.seed)
        held = {sample.name for sample in val}
        return [sample for sample in capped if sample.name not in held], list(val)

    def _fetch(self) -> None:
        reason = ""
        if self.url and self.download:
            try:
                download_and_extract_archive(self.url, self.root.parent)
            except Exception as error:
                reason = f" (the download failed: {error})"
        if not self.root.is_dir():
            fetch = f"fetch {self.url} and unpack it there, or " if self.url else ""
            raise InputError(
                f"data.root={self.root} is no folder{reason}: it must hold {LAYOUT}; {fetch}give another path"
            )
