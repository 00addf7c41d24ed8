"""Data sets: labelled samples in three splits, with a seeded split for data that has none."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np

from blockwise.errors import InputError
from blockwise.io.class_names import read_class_names
from blockwise.io.files import open_regular
from blockwise.io.hashes import UNREADABLE, hash_content, hash_files, turned
from blockwise.io.images import orientation
from blockwise.io.names import decodable

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".gif", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_WORDS = {word: split for split, words in SPLIT_NAMES.items() for word in words}
# images of a class that is split by seed: one each to train, to validate and to test
FEWEST = 3


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        name: Name in the data set, the same on every machine.
        label: Index of its class.
        image: A file, a function that returns the content of one, or the pixels: uint8, shape (height, width) or
            (height, width, 3).
    """

    name: str
    label: int
    image: Path | Callable[[], bytes] | np.ndarray

    @cached_property
    def orientation(self) -> int:
        """The EXIF orientation that is undone when the image is decoded, 2 to 8; 1 if there is none."""
        return _orientation(self)


@dataclass(frozen=True)
class Splits:
    """The classes and samples of a data set; `val` is for selection, `test` for reported results.

    Attributes:
        classes: Class names.
        train: Samples to train.
        val: Samples to select by.
        test: Samples to report.
        fingerprint: Hash of names, labels and content of all samples.
        listed: Whether a list says which samples are in which split, so that it could change without the samples.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    fingerprint: str
    listed: bool = False

    def with_names(self, classes: str | Path | Sequence[str] | None) -> Splits:
        """Return the same splits with class names from a file or a list, see `read_class_names`; None keeps the names.

        Raises:
            InputError: They do not fit the classes.
        """
        return self if classes is None else replace(self, classes=read_class_names(classes, self.classes))


def open_file(image: Path | Callable[[], bytes]) -> BufferedReader | BytesIO:
    """Open the file of a sample, or what a function returns as if it were one.

    Raises:
        OSError: It cannot be read.
    """
    return open_regular(image) if isinstance(image, Path) else BytesIO(image())


def fingerprint(samples: Iterable[Sample]) -> str:
    """Return a hash of the names, labels and content of samples, and of the EXIF orientation of those that have one.

    It covers the whole data set before splitting, so it does not depend on the seed.
    """
    ordered = sorted(samples, key=lambda sample: (sample.name, sample.label))
    contents = iter(hash_files([sample.image for sample in ordered if isinstance(sample.image, Path)]))
    lines = []
    for sample in ordered:
        content = next(contents) if isinstance(sample.image, Path) else _hash(sample.image)
        # the hash tells it, so that the headers need not be read again; `Sample` is frozen, but keeps what it computed
        vars(sample)["orientation"] = turned(content)
        lines.append(f"{sample.name}\0{sample.label}\0{content}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _hash(image: Callable[[], bytes] | np.ndarray) -> str:
    if isinstance(image, np.ndarray):
        return hashlib.blake2b(image.tobytes()).hexdigest()
    try:
        return hash_content(image())
    except OSError as error:  # decoding reports it; once it can be read, the hash changes
        return f"{UNREADABLE}{error.strerror}"


def _orientation(sample: Sample) -> int:
    if isinstance(sample.image, np.ndarray):
        return 1
    try:
        with open_file(sample.image) as file:
            return orientation(file)
    except OSError:  # decoding reports the file
        return 1


class Source(ABC):
    """Base class of data sets: finds the samples and splits them."""

    name: str

    @abstractmethod
    def splits(self) -> Splits:
        """Find the samples and return their splits.

        Raises:
            InputError: The data is missing, or too small for the requested split.
        """


def split_by_seed(
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    train_per_class: int | None,
    val_per_class: int | None,
    test_per_class: int | None,
    seed: int,
    groups: str | None = None,
) -> Splits:
    """Split the samples of each class at random; the result depends only on their names and the seed.

    Args:
        samples: The samples, in any order.
        classes: Class names.
        train_per_class: Training images per class, including those held out for validation; None uses 80 %.
        val_per_class: Number of these that are held out for validation; None holds out a quarter.
        test_per_class: Maximum number of test images per class; None uses all remaining images.
        seed: Seed of the split.
        groups: A regular expression: images in whose names its parentheses match the same text do not both train and
            test. Those of a group that would are left out of the test.

    Raises:
        InputError: A class has too few images, or none is left to test.
    """
    parts: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    members_of = by_label(samples)
    place = {} if groups is None else _shuffled_groups(samples, seed, groups)
    for label, name in enumerate(classes):
        own = shuffled(members_of.get(label, []), seed)
        own = own if groups is None else sorted(own, key=lambda sample: place[group_of(sample.name, groups)])
        if len(own) < FEWEST:
            raise InputError(
                f"class {name!r} has {len(own)} image(s): it needs at least {FEWEST}, to train, to validate and to test"
            )
        train = int(0.8 * len(own)) if train_per_class is None else train_per_class
        val = max(1, train // 4) if val_per_class is None else val_per_class
        if not 0 < val < train:
            raise InputError(
                f"data.val_per_class={val} does not fit data.train_per_class={train} for class {name!r}: validation "
                f"and training need at least 1 image each, so choose 1 to {max(train - 1, 1)}"
            )
        if train >= len(own):
            raise InputError(
                f"data.train_per_class={train} leaves no test images: class {name!r} has {len(own)} images, "
                f"so choose at most {len(own) - 1}"
            )
        for part, members in zip(parts, (own[: train - val], own[train - val : train], own[train:]), strict=True):
            part.extend(members)
    test = parts[2] if groups is None else _apart(parts[2], parts[0] + parts[1], classes, groups)
    tested = tuple(s for own in by_label(test).values() for s in own[:test_per_class])
    return Splits(tuple(classes), tuple(parts[0]), tuple(parts[1]), tested, fingerprint(samples))


def group_of(name: str, groups: str) -> str:
    """Return the group of the sample with a name: what the parentheses of an expression match, or all that it matches.

    Raises:
        InputError: The expression does not fit the name.
    """
    match = re.search(groups, name)
    if match is None:
        raise InputError(f"data.groups={groups} does not fit the image {name}")
    return "\0".join(match.groups()) if match.groups() else match[0]


def _shuffled_groups(samples: Sequence[Sample], seed: int, groups: str) -> dict[str, int]:
    """Return the place of each group in a random order."""
    found = sorted({group_of(sample.name, groups) for sample in samples})
    order = np.random.default_rng(seed).permutation(len(found))
    return {found[index]: place for place, index in enumerate(order)}


def _apart(test: Sequence[Sample], trained: Sequence[Sample], classes: Sequence[str], groups: str) -> list[Sample]:
    """Return the test samples of groups that do not train."""
    known = {group_of(sample.name, groups) for sample in trained}
    left = [sample for sample in test if group_of(sample.name, groups) not in known]
    labels = {sample.label for sample in left}
    if missing := [name for label, name in enumerate(classes) if label not in labels]:
        raise InputError(
            f"data.groups={groups} leaves no images of class {missing[0]!r} to test: all of its groups train as well, "
            "so choose smaller groups, or fewer images with data.train_per_class"
        )
    return left


def split_as_given(
    parts: Mapping[str, Sequence[Sample]],
    classes: Sequence[str],
    *,
    train_per_class: int | None,
    val_per_class: int | None,
    test_per_class: int | None,
    seed: int,
) -> Splits:
    """Return the splits that a data set has; if it has no `val`, validation images are held out of `train` by seed.

    Args:
        parts: The samples of `train`, `test` and perhaps `val`.
        classes: Class names.
        train_per_class: Maximum number of training images per class, including those held out; None uses all.
        val_per_class: Maximum number of validation images per class, or the number that is held out; None uses all, or
            holds out a quarter of the training images of the smallest class.
        test_per_class: Maximum number of test images per class; None uses all.
        seed: Seed of what is held out and left out.

    Raises:
        InputError: A class has too few training images to hold some out.
    """
    train: Sequence[Sample] = cap(parts["train"], train_per_class, seed)
    if "val" in parts:
        val: Sequence[Sample] = cap(parts["val"], val_per_class, seed)
    else:
        train, val = _hold_out(train, len(classes), val_per_class, seed)
    test = cap(parts["test"], test_per_class, seed)
    everything = [sample for part in parts.values() for sample in part]
    return Splits(tuple(classes), tuple(train), tuple(val), test, fingerprint(everything))


def _hold_out(
    samples: Sequence[Sample], classes: int, val_per_class: int | None, seed: int
) -> tuple[list[Sample], tuple[Sample, ...]]:
    members = by_label(samples)
    smallest = min((len(members.get(label, [])) for label in range(classes)), default=0)
    count = max(1, smallest // 4) if val_per_class is None else val_per_class
    if smallest < 2:
        raise InputError(
            f"the smallest class has {smallest} training image{'s' if smallest != 1 else ''}, and none would be left "
            "after holding one out to validate: add images to it, or add a val split"
        )
    if not 0 < count < smallest:
        raise InputError(
            f"data.val_per_class={count} does not fit: the smallest class has {smallest} training images, "
            f"so choose 1 to {smallest - 1}, or add a val split"
        )
    val = cap(samples, count, seed)
    held = {sample.name for sample in val}
    return [sample for sample in samples if sample.name not in held], val


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Return the samples of one class in a random order that depends only on their names and the seed."""
    ordered = sorted(samples, key=lambda sample: sample.name)
    label = ordered[0].label if ordered else 0
    return [ordered[i] for i in np.random.default_rng([seed, label]).permutation(len(ordered))]


def cap(samples: Sequence[Sample], per_class: int | None, seed: int) -> tuple[Sample, ...]:
    """Keep at most `per_class` samples of each class; None keeps all."""
    if per_class is None:
        return tuple(samples)
    return tuple(s for _, own in sorted(by_label(samples).items()) for s in shuffled(own, seed)[:per_class])


def by_label(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    """Return the samples of each class that has any."""
    members: dict[int, list[Sample]] = {}
    for sample in samples:
        members.setdefault(sample.label, []).append(sample)
    return members


def samples_in(
    folder: Path, *, without: Sequence[str] = (), below: Path | None = None
) -> tuple[list[Sample], list[str]]:
    """Return the images in `folder/<class>/...` and the class names, both sorted by name.

    Hidden files and folders are skipped. Links are followed, except to a folder that contains the data set.

    Args:
        folder: Contains one folder per class.
        without: Folders that are not classes.
        below: Sample names are paths relative to this folder; None means `folder`.

    Raises:
        InputError: A class has no images, or is a link to another class or to a folder that contains the data set.
    """
    classes = sorted(
        (entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "." and entry.name not in without),
        key=lambda entry: entry.name,
    )
    _check_links(folder, classes)
    samples = []
    for label, entry in enumerate(classes):
        # paths compare by their parts, but slowly: there may be 100,000
        files = sorted(images_in(entry, folder), key=lambda file: file.parts)
        if not files:
            raise InputError(
                f"{entry} contains no images: every folder in {folder} must be a class and contain images "
                f"({_suffixes()})"
            )
        depth = len((below or folder).parts)
        names = (decodable("/".join(file.parts[depth:])) for file in files)
        samples += [Sample(name, label, file) for name, file in zip(names, files, strict=True)]
    return samples, [decodable(entry.name) for entry in classes]


def _check_links(folder: Path, classes: Sequence[Path]) -> None:
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.exists():
            raise InputError(f"{entry} is a link to something that does not exist: remove it")
    named: dict[Path, Path] = {}
    for entry in classes:
        real = entry.resolve()
        if folder.resolve().is_relative_to(real):
            raise InputError(f"{entry} is a link to {real}, which contains the data set: remove the link")
        if (other := named.setdefault(real, entry)) != entry:
            raise InputError(f"{other} and {entry} are the same folder: remove one of the links")


def images_in(folder: Path, data_set: Path | None = None) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, hidden ones left out, in any order.

    Args:
        folder: The folder.
        data_set: The folder of the data set that it belongs to, if it is another one.
    """
    # a link to one of these would yield the same images again, or all files of the disk
    outside = folder.resolve().parents if data_set is None else (data_set.resolve(), *data_set.resolve().parents)
    seen = {str(parent) for parent in outside}
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != "."]
        here = Path(parent)
        for name in files:
            if name[0] != "." and name[name.rfind(".") :].lower() in IMAGE_SUFFIXES:
                path = here / name
                if path.is_file() or path.is_symlink():
                    yield path


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
