"""Data sets of Hugging Face's library `datasets`: from its hub, its cache, or a local folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from blockwise.backbone.makers.hub import UnreachableError, check_hub
from blockwise.data.samples import SPLIT_WORDS, Sample, Source, Splits, split_as_given, split_by_seed
from blockwise.data.sources.table import sorted_labels
from blockwise.errors import InputError, first_line
from blockwise.io.files import read_regular

# what `save_to_disk` writes for several splits, and for one
SAVED = ("dataset_dict.json", "state.json")


class HuggingFace(Source):
    """A data set of the library `datasets`, with its own splits, or split at random by seed if it has only one.

    If it has no validation images, these are held out of its training images by seed. Images are read one at a time and
    decoded by blockwise; names of samples are the split and the row.

    Args:
        path: Name on the hub, such as `ethz/food101`, or a folder: of images, of the files of a data set, or what
            `save_to_disk` wrote.
        config: Configuration of the data set; None takes the only one.
        revision: Branch, tag or commit on the hub; None takes the newest.
        splits: Its splits for `train`, `val` and `test`; None takes those with these names.
        image_column: Column of the images; None takes the only one.
        label_column: Column of the labels; None takes the only one with class names.
        train_per_class: Training images per class, including those held out for validation; None uses 80 %, or all of
            the split.
        val_per_class: Validation images per class; None holds out a quarter of the training images, or uses all of the
            split.
        test_per_class: Maximum number of test images per class; None uses all.
        seed: Seed of the split.
        classes: File with the names of the classes, see `read_class_names`; None takes those of the data set.
        name: Name of the data set in records.
        download: Whether to ask the hub; False uses what is in the cache.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        classes: Any = None,
        name: str = "huggingface",
        download: bool = True,
    ) -> None:
        self.path = str(path)
        self.config = config
        self.revision = revision
        self.given = splits
        self.columns = (image_column, label_column)
        self.sizes: dict[str, Any] = {
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "test_per_class": test_per_class,
        }
        self.seed = seed
        self.classes = classes
        self.name = name
        self.download = download

    def splits(self) -> Splits:
        """Load the data set and return its splits; its images are not read for good.

        Raises:
            InputError: The library or the data set is missing, it has other splits or columns, or is too small.
        """
        library = _library()
        parts = self._parts(self._load(library))
        image, label = self._columns(library, parts["train"].features)
        classes, labels = self._labels(parts, label)
        samples = {split: self._samples(library, part, split, image, labels[split]) for split, part in parts.items()}
        if samples.keys() == {"train"}:
            splits = split_by_seed(samples["train"], classes, **self.sizes, seed=self.seed)
        else:
            splits = split_as_given(samples, classes, **self.sizes, seed=self.seed)
        return splits.with_names(self.classes)

    def _load(self, library: Any) -> dict[str, Any]:
        """Return the splits of the data set by their own names."""
        folder = Path(self.path).expanduser()
        try:
            if folder.is_dir():
                saved = any((folder / name).is_file() for name in SAVED)
                loaded = library.load_from_disk(str(folder)) if saved else self._load_files(library, folder)
            else:
                loaded = self._load_from_hub(library)
        except InputError:
            raise
        except Exception as error:  # the library raises whatever it likes
            raise InputError(f"data.path={self.path} cannot be loaded ({first_line(error)})") from error
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def _load_files(self, library: Any, folder: Path) -> Any:
        shown = not library.utils.are_progress_bars_disabled()
        library.disable_progress_bars()  # nothing is downloaded, although they say so
        try:
            return library.load_dataset(str(folder), name=self.config)
        finally:
            if shown:
                library.enable_progress_bars()

    def _load_from_hub(self, library: Any) -> Any:
        reason = "data.download=false"
        try:
            if self.download:
                check_hub()  # the library would try for a minute
                return library.load_dataset(self.path, name=self.config, revision=self.revision)
        except UnreachableError as error:
            reason = str(error)
        with _offline(library):
            try:
                return library.load_dataset(self.path, name=self.config, revision=self.revision)
            except ConnectionError as error:
                raise InputError(
                    f"data.path={self.path} is neither a folder nor in the cache of the library ({reason}): "
                    "run once where there is a network, or name a folder"
                ) from error

    def _parts(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the splits by our names; only `train` if it is to be split by seed."""
        if self.given is not None:
            if missing := [own for own in self.given.values() if own not in loaded]:
                raise InputError(f"data.path={self.path} has no split {missing[0]}, but {', '.join(loaded)}")
            parts = {split: loaded[own] for split, own in self.given.items()}
        elif len(loaded) == 1:
            parts = {"train": next(iter(loaded.values()))}
        else:
            known = {own: SPLIT_WORDS[own.lower()] for own in loaded if own.lower() in SPLIT_WORDS}
            parts = {split: loaded[own] for own, split in known.items()}
            if len(parts) < len(known):
                raise InputError(f"data.path={self.path} has {', '.join(known)}: choose those to use with data.splits")
        if "train" not in parts or (len(parts) > 1 and "test" not in parts):
            raise InputError(
                f"data.path={self.path} has the splits {', '.join(loaded)}: choose those to train and to test, such as "
                "data.splits={train: train, test: validation}, or only {train: train} for a split by seed"
            )
        return parts

    def _columns(self, library: Any, features: Mapping[str, Any]) -> tuple[str, str]:
        kinds = {"image": library.Image, "label": library.ClassLabel}
        found = []
        for (what, kind), column in zip(kinds.items(), self.columns, strict=True):
            fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
            if column is None and len(fitting) != 1:
                several = f"several columns of {what}s" if fitting else f"no column of {what}s that says so"
                raise InputError(
                    f"data.path={self.path} has {several}: set data.{what}_column to one of {', '.join(features)}"
                )
            found.append(fitting[0] if column is None else column)
            if found[-1] not in features or (what == "image" and found[-1] not in fitting):
                raise InputError(f"data.{what}_column={column} is not a column of {what}s: {', '.join(features)}")
        return found[0], found[1]

    def _labels(self, parts: Mapping[str, Any], column: str) -> tuple[list[str], dict[str, list[int]]]:
        """Return the class names, and the labels of each split."""
        values = {split: list(part[column]) for split, part in parts.items()}
        names = getattr(parts["train"].features[column], "names", None)
        if any(getattr(part.features[column], "names", None) != names for part in parts.values()):
            raise InputError(f"data.path={self.path} has splits with different class names")
        if unlabelled := sum(value in (None, "", -1) for part in values.values() for value in part):
            raise InputError(f"data.path={self.path} has {unlabelled} images without a label: choose other splits")
        if names is not None:
            return list(names), values
        classes = sorted_labels(str(value) for part in values.values() for value in part)
        indices = {name: label for label, name in enumerate(classes)}
        return classes, {split: [indices[str(value)] for value in part] for split, part in values.items()}

    def _samples(self, library: Any, part: Any, split: str, column: str, labels: list[int]) -> list[Sample]:
        images = part.select_columns([column]).cast_column(column, library.Image(decode=False))
        return [
            Sample(f"{split}/{row:06d}", label, partial(_read, images, column, row)) for row, label in enumerate(labels)
        ]


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            "data=huggingface needs a package that is not installed: pip install 'blockwise[huggingface]'"
        ) from error


def _read(images: Any, column: str, row: int) -> bytes:
    """Return the bytes of an image, which the library maps from disk, or the content of its file."""
    image = images[row][column]
    if image is None:
        raise OSError(0, "the row has no image")
    content: bytes | None = image["bytes"]
    return read_regular(Path(image["path"])) if content is None else content


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Let the library look at nothing but its cache."""
    before = library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
