"""The folder tree of records.

The folder of a cell is `results/<data>/<backbone>/<partition>/<scope>/seed<seed>-<hash>/`. It contains `record.json`,
`history.csv`, `predictions.safetensors` and `weights.safetensors`. `record.json` is written last and atomically: a cell
without it is not finished.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwise.errors import InputError
from blockwise.io.files import open_regular, read_regular, replacing
from blockwise.io.names import file_name, printable
from blockwise.results.predictions import PREDICTIONS, checksum
from blockwise.results.record import METRICS, NEWER_METRICS, Metrics, Record, Settings

if TYPE_CHECKING:  # reading records must not import torch
    from torch import Tensor

HISTORY = "history.csv"
WEIGHTS = "weights.safetensors"
# the file that an export has and the folder of a cell has not
CARD = "README.md"
# the folder of a cell
CELL = re.compile(r"seed\d+-[0-9a-f]{10}", re.ASCII)
PER_CELL = ("scope", "blocks", "lr", "seed")


def settings_hash(settings: Settings) -> str:
    """Return a short hash of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def first_settings(settings: Settings) -> Settings:
    """Return the settings under which the first versions recorded a cell.

    They wrote that norms of trained blocks use batch statistics, which was the default, but kept all norms in inference
    mode: Lightning no longer calls `train()`. So their records are those of cells with norms in inference mode.
    """
    return {**settings, "freeze": {"norm": "train"}} if settings.get("freeze") == {"norm": "eval"} else settings


def sweep_hash(settings: Settings) -> str:
    """Return the hash of the settings that all cells of a sweep share: all except scope, learning rate and seed."""
    return settings_hash({key: value for key, value in settings.items() if key not in PER_CELL})


def sweep_path(settings: Settings) -> str:
    """Return the path of a sweep relative to the results folder."""
    return "/".join(file_name(str(settings[part]["name"])) for part in ("data", "model", "partition"))


def cell_name(settings: Settings) -> str:
    """Return the name of a cell's folder, unique within its sweep and scope: seed and hash."""
    return f"seed{settings['seed']}-{settings_hash(settings)}"


class ResultStore:
    """Writes and finds records in one results folder.

    Raises:
        InputError: The folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(f"results_dir={self.folder} cannot be written to ({error.strerror})") from error

    def cell_folder(self, settings: Settings) -> Path:
        """Return the folder of the cell with these settings."""
        return self.sweep_folder(settings) / str(settings["scope"]) / cell_name(settings)

    def sweep_folder(self, settings: Settings) -> Path:
        """Return the folder of the sweep that a cell with these settings belongs to."""
        return self.folder / sweep_path(settings)

    def lock(self, settings: Settings) -> Path:
        """Return the file that a process locks while it trains the cell with these settings."""
        return self.folder / ".locks" / settings_hash(settings)

    def checkpoints(self, settings: Settings) -> Path:
        """Return the folder of the checkpoints of this sweep and seed."""
        return self.folder / ".checkpoints" / f"{sweep_hash(settings)}-seed{settings['seed']}"

    def find(self, settings: Settings) -> Record | None:
        """Return the record of the cell with these settings; None if it is missing, damaged or that of another cell."""
        for recorded in (settings, first_settings(settings)):
            with suppress(OSError, InputError):
                return read_record(self.cell_folder(recorded) / "record.json")
        return None

    def save(
        self,
        record: Record,
        history: list[dict[str, Metrics]],
        weights: dict[str, Tensor],
        predictions: bytes = b"",
    ) -> Record:
        """Write a cell's files, `record.json` last, and return the record with their checksums and its folder.

        Args:
            record: The content of `record.json`.
            history: Train and validation metrics, one entry per epoch.
            weights: The trained tensors.
            predictions: The content of the file of predictions.
        """
        folder = self.cell_folder(record.settings)
        folder.mkdir(parents=True, exist_ok=True)
        header = ["epoch", *(f"{split}_{metric}" for split in ("train", "val") for metric in METRICS)]
        epochs = ([row[split].get(metric, "") for split in ("train", "val") for metric in METRICS] for row in history)
        curves = _to_csv(header, ([epoch, *values] for epoch, values in enumerate(epochs)))
        contents = {HISTORY: curves, PREDICTIONS: predictions, WEIGHTS: _to_bytes(weights) if weights else b""}
        for name, content in contents.items():
            if content:
                with replacing(folder / name) as temporary:
                    temporary.write_bytes(content)
        record = replace(record, files={name: checksum(content) for name, content in contents.items() if content})
        with replacing(folder / "record.json") as temporary:
            text = json.dumps(record.to_json(), indent=2, allow_nan=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")
        return replace(record, folder=str(folder))


def read_records(folder: str | Path) -> list[Record]:
    """Return the records in a folder and its subfolders, in a stable order.

    Raises:
        InputError: There are none.
    """
    records = find_records(Path(folder).expanduser())
    if not records:
        raise InputError(f"{folder} contains no records: give the results folder of a training run")
    return records


def find_records(folder: Path) -> list[Record]:
    """Return the records in a folder and its subfolders; damaged ones are skipped and reported on stderr."""
    records = []
    for path in sorted(folder.rglob("record.json")):
        if path.parent != folder and (path.parent / CARD).is_file() and not CELL.fullmatch(path.parent.name):
            continue  # an export has a copy of its cell's record
        try:
            records.append(read_record(path))
        except InputError as error:
            print(printable(f"skipping {path}: {str(error).removeprefix(f'{path}: ')}"), file=sys.stderr)
        except OSError as error:
            print(printable(f"skipping {path}: {error.strerror}"), file=sys.stderr)
    return records


def read_record(path: Path) -> Record:
    """Return the record in a file.

    Raises:
        InputError: The file contains no valid record, or that of another cell; the message names file and field.
        OSError: The file cannot be read.
    """
    record = replace(Record.from_json(read_regular(path), path), folder=str(path.parent))
    name = path.parent.name
    hashes = {settings_hash(settings) for settings in (record.settings, first_settings(record.settings))}
    if CELL.fullmatch(name) and name.rpartition("-")[2] not in hashes:
        raise InputError(f"{path}: it is the record of another cell, {record.cell.scope} of {record.backbone.name}")
    return record


def read_history(folder: str | Path) -> list[dict[str, Metrics]]:
    """Return the `train` and `val` metrics of each epoch from a cell's folder; empty if there is no history."""
    try:
        with open_regular(Path(folder, HISTORY)) as file:
            rows = list(csv.DictReader(TextIOWrapper(file, encoding="utf-8", newline="")))
        return [{split: _metrics(row, split) for split in ("train", "val")} for row in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):  # removed or incomplete
        return []


def _metrics(row: dict[str, str], split: str) -> Metrics:
    names = [name for name in METRICS if name not in NEWER_METRICS or row.get(f"{split}_{name}")]
    return {name: float(row[f"{split}_{name}"]) for name in names}


def _to_bytes(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}))


def _to_csv(header: list[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()
