"""The record of a finished cell, and the folder tree that keeps records.

`results/<data>/<backbone>/<partition>/<scope>/seed<seed>-<hash>/` holds `record.json`, `history.csv`,
`predictions.csv` and `weights.safetensors`. `record.json` is written last, atomically: a cell without it is not
finished.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwise.errors import InputError
from blockwise.files import replacing

if TYPE_CHECKING:  # tables are read without waiting for torch
    from torch import Tensor

SCHEMA = 1
KEYS = frozenset("status backbone data partition cell seed settings metrics seconds provenance".split())
HISTORY = "history.csv"
PREDICTIONS = "predictions.csv"
METRICS = ("top1", "top5", "macro_f1", "ece", "loss")
Metrics = dict[str, float]
Record = dict[str, Any]
Settings = Mapping[str, Any]
PER_CELL = ("scope", "blocks", "lr", "seed")


def settings_hash(settings: Settings) -> str:
    """Return a short hash of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def sweep_hash(settings: Settings) -> str:
    """Return the hash of what the cells of a sweep have in common: all but scope, learning rate and seed."""
    return settings_hash({key: value for key, value in settings.items() if key not in PER_CELL})


def sweep_path(settings: Settings) -> str:
    """Return where a sweep lies below a results folder."""
    return "/".join(str(settings[part]["name"]) for part in ("data", "model", "partition"))


def cell_name(settings: Settings) -> str:
    """Return what tells a cell from the others of its sweep and scope: seed and hash."""
    return f"seed{settings['seed']}-{settings_hash(settings)}"


class ResultStore:
    """Writes and finds records below one folder.

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
        """Return the folder of what cells of this sweep and seed go on from when they were interrupted."""
        return self.folder / ".checkpoints" / f"{sweep_hash(settings)}-seed{settings['seed']}"

    def find(self, settings: Settings) -> Record | None:
        """Return the record of the cell with these settings, if it is finished."""
        return read_record(self.cell_folder(settings) / "record.json")

    def save(
        self,
        record: Record,
        history: list[dict[str, Metrics]],
        weights: dict[str, Tensor],
        predictions: Iterable[tuple[str, str]] = (),
    ) -> Path:
        """Write a cell's files, the record last, and return its folder.

        Args:
            record: What `record.json` will hold.
            history: Metrics, one entry an epoch.
            weights: What the cell has trained.
            predictions: The true and the predicted class of every test image.
        """
        folder = self.cell_folder(record["settings"])
        folder.mkdir(parents=True, exist_ok=True)
        header = ["epoch", *(f"{split}_{metric}" for split in ("train", "val") for metric in METRICS)]
        epochs = ([row[split][metric] for split in ("train", "val") for metric in METRICS] for row in history)
        _write_csv(folder / HISTORY, header, ([epoch, *values] for epoch, values in enumerate(epochs)))
        if predictions:
            _write_csv(folder / PREDICTIONS, ["label", "predicted"], predictions)
        if weights:
            from safetensors.torch import save

            contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
            with replacing(folder / "weights.safetensors") as temporary:
                temporary.write_bytes(save(contiguous))
        with replacing(folder / "record.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        return folder


def read_records(folder: str | Path) -> list[Record]:
    """Return every record below a folder, in a stable order; `record["folder"]` tells where each lies.

    Raises:
        InputError: There is none.
    """
    records = find_records(Path(folder).expanduser())
    if not records:
        raise InputError(f"{folder} holds no records: give a results folder that a training run has written to")
    return records


def find_records(folder: Path) -> list[Record]:
    """Return every record below a folder, in a stable order; none is fine. What cannot be read is named on stderr."""
    found = []
    for path in sorted(folder.rglob("record.json")):
        record = read_record(path)
        if record is None:
            print(f"{path} is left out: it is no whole record", file=sys.stderr)
        else:
            found.append(record)
    return found


def read_record(path: Path) -> Record | None:
    """Return a record, or None where there is none that is whole."""
    try:
        record = json.loads(path.read_text(), parse_constant=_refuse)
        return {**record, "folder": str(path.parent)} if _is_whole(record) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_whole(record: Any) -> bool:
    """Tell whether a record has what is read of it."""
    if record["schema"] != SCHEMA or not set(record) >= KEYS:
        return False
    names = (record["backbone"]["name"], record["data"]["name"], record["partition"]["name"], record["cell"]["scope"])
    numbers = [record["partition"]["num_blocks"], record["cell"]["trainable_parameters"], record["seconds"]]
    if record["status"] == "finished":
        numbers += [record["metrics"][split]["top1"] for split in ("val", "test")]
    parts = (record["settings"], record["provenance"])
    return (
        {"quarter", "blocks"} <= set(record["cell"])
        and all(isinstance(name, str) for name in names)
        and all(isinstance(number, (int, float)) for number in numbers)
        and all(isinstance(part, dict) for part in parts)
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def read_history(folder: str | Path) -> list[dict[str, Metrics]]:
    """Return the `train` and `val` metrics of each epoch of a cell, from its folder; none where they are not kept."""
    try:
        with Path(folder, HISTORY).open(newline="") as file:
            rows = list(csv.DictReader(file))
        splits = ("train", "val")
        return [{split: {name: float(row[f"{split}_{name}"]) for name in METRICS} for split in splits} for row in rows]
    except (OSError, KeyError, TypeError, ValueError):  # removed, or cut off
        return []


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
