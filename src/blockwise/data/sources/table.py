"""A table of images: a CSV file with the columns path, label and perhaps split."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blockwise.data.samples import SPLIT_WORDS, Sample, Source, Splits, split_as_given, split_by_seed
from blockwise.errors import InputError
from blockwise.io.files import read_regular
from blockwise.io.names import printable, some

SPLIT_COLUMN = "split"
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One row of a table, with its line in the file and whether it is longer than the header."""

    line: int
    longer: bool
    path: str
    label: str
    split: str = ""


class CsvTable(Source):
    """Images that a CSV file lists, split at random by seed or as its column `split` says.

    The file has a header, and commas, semicolons or tabs between its columns. If it has a split, but no validation
    images, these are held out of the training images by seed. Names of samples are the paths as the table has them.

    Args:
        file: The CSV file.
        images: Folder that paths start from; None is the folder of the file.
        path_column: Column of the paths.
        label_column: Column of the labels.
        split_column: Column with train, val or test; a table without this column, or None, is split by seed.
        train_per_class: Training images per class, including those held out for validation; None uses 80 %, or all of
            the split.
        val_per_class: Validation images per class; None holds out a quarter of the training images, or uses all of the
            split.
        test_per_class: Maximum number of test images per class; None uses all.
        seed: Seed of the split.
        classes: File with the names of the classes, see `read_class_names`; None takes the labels.
        groups: Images in whose names the parentheses of this expression match the same text do not both train and
            test, if they are split by seed.
        name: Name of the data set in records.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        images: str | Path | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str | None = SPLIT_COLUMN,
        train_per_class: int | None = None,
        val_per_class: int | None = None,
        test_per_class: int | None = None,
        seed: int = 0,
        classes: str | Path | None = None,
        groups: str | None = None,
        name: str = "csv",
    ) -> None:
        self.file = Path(file).expanduser()
        self.images = self.file.parent if images is None else Path(images).expanduser()
        self.columns = (path_column, label_column)
        self.split_column = split_column
        self.sizes = {
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "test_per_class": test_per_class,
        }
        self.seed = seed
        self.classes = classes
        self.groups = groups
        self.name = name

    def splits(self) -> Splits:
        """Read the table and return its splits.

        Raises:
            InputError: The table cannot be read, a row is not as it must be, or there are too few images for the split.
        """
        rows = self._rows()
        self._check(rows)
        classes = sorted_labels(row.label for row in rows)
        labels = {name: label for label, name in enumerate(classes)}
        samples = [Sample(_name(row.path), labels[row.label], self.images / row.path) for row in rows]
        if any(row.split for row in rows):
            parts = self._parts(rows, samples, classes)
            splits = replace(split_as_given(parts, classes, **self.sizes, seed=self.seed), listed=True)
        else:
            splits = split_by_seed(samples, classes, **self.sizes, seed=self.seed, groups=self.groups)
        return splits.with_names(self.classes)

    def _rows(self) -> list[Row]:
        text = self._text()
        header = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            wanted = self._wanted(reader.fieldnames)
            rows = [
                Row(reader.line_num, None in entry, *((entry[column] or "").strip() for column in wanted))
                for entry in reader
            ]
        except csv.Error as error:
            raise InputError(f"data.file={self.file} is not a CSV file ({error})") from error
        if not rows:
            raise InputError(f"data.file={self.file} has no rows: it must have a header, and one row per image")
        return rows

    def _text(self) -> str:
        try:
            text = read_regular(self.file).decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"data.file={self.file} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise InputError(f"data.file={self.file} is not text in UTF-8: save the table as CSV in UTF-8")
        return text

    def _wanted(self, columns: Sequence[str]) -> list[str]:
        """Return the columns of path, label and, if there is one, split."""
        split = self.split_column
        optional = split == SPLIT_COLUMN and split not in columns
        wanted = [*self.columns, *([] if split is None or optional else [split])]
        if missing := [column for column in wanted if column not in columns]:
            raise InputError(
                f"data.file={self.file} has no column {' and no column '.join(map(repr, missing))}, but "
                f"{printable(', '.join(columns)) or 'no header'}: name its columns with data.path_column, "
                "data.label_column and data.split_column"
            )
        return wanted

    def _check(self, rows: Sequence[Row]) -> None:
        given = any(row.split for row in rows)
        self._refuse("have more fields than the header", rows, lambda row: row.longer)
        self._refuse("have no path", rows, lambda row: not row.path)
        self._refuse("have no label", rows, lambda row: not row.label)
        self._refuse(
            "are in no split, which is train, val or test",
            rows,
            lambda row: given and row.split.lower() not in SPLIT_WORDS,
            lambda row: f" ({row.split!r})",
        )
        named: dict[str, Row] = {}
        for row in rows:
            if (first := named.setdefault(os.path.normpath(row.path), row)) is not row:
                labels = f", as {first.label!r} and {row.label!r}" if first.label != row.label else ""
                raise InputError(
                    f"data.file={self.file} lists {printable(row.path)} in lines {first.line} and {row.line}{labels}: "
                    "each image must be listed once"
                )
        self._refuse(
            f"name a file that is not in {self.images}",
            rows,
            lambda row: not _is_file(self.images / row.path),
            lambda row: f" ({printable(row.path)})",
        )

    def _refuse(
        self,
        problem: str,
        rows: Sequence[Row],
        wrong: Callable[[Row], bool],
        told: Callable[[Row], str] | None = None,
    ) -> None:
        """Raise an error that names the first few rows that are wrong, and their number."""
        found = [row for row in rows if wrong(row)]
        if found:
            lines = some([f"line {row.line}{told(row) if told else ''}" for row in found])
            raise InputError(f"data.file={self.file}: {len(found)} row(s) {problem}: {lines}")

    def _parts(self, rows: Sequence[Row], samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, list[Sample]]:
        """Return the samples of each split that the table has."""
        parts: dict[str, list[Sample]] = {}
        for row, sample in zip(rows, samples, strict=True):
            parts.setdefault(SPLIT_WORDS[row.split.lower()], []).append(sample)
        if missing := [split for split in ("train", "test") if split not in parts]:
            raise InputError(
                f"data.file={self.file} has no images to {' and to '.join(missing)}: its column {self.split_column!r} "
                "must say train, val (optional) and test, or set data.split_column=null for a split by seed"
            )
        trained = {sample.label for sample in parts["train"]}
        if untrained := [name for label, name in enumerate(classes) if label not in trained]:
            raise InputError(f"data.file={self.file} has no training images of {printable(some(untrained))}")
        return parts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _name(path: str) -> str:
    """Return a path as the name of a sample: `./a//b.png` is `a/b.png`."""
    return Path(path).as_posix()


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Return labels without repetitions in their order; numbers are ordered as numbers.

    >>> sorted_labels(["10", "9", "9"]), sorted_labels(["10", "9", "a"])
    (['9', '10'], ['10', '9', 'a'])
    """
    different = set(labels)
    if all(label.isascii() and label.isdigit() for label in different):
        return sorted(different, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    return sorted(different)
