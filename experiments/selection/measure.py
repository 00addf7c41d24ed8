"""Which rule chooses a good block from few images? Train every block on several splits, and keep what they predict.

    python experiments/selection/measure.py imagefolder data.root=photos data.name=flowers5
    python experiments/selection/measure.py caltech101 data.root=data images=5,10 splits=3 models=efficientnet_lite0

`images=` chooses numbers of labelled images per class, of which half validate, or with `folds=` all of them; `splits=`
the number of seeds; `models=` backbones; `weights.<model>=` a checkpoint. Further arguments are overrides of the
config. Sweeps in `results/` are skipped. After each sweep, `results/` is brought up to date: one file per data set,
number of images and folds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockwise import read_records as read_frame  # noqa: F401 (checks that the package is installed)
from blockwise.results import read_predictions, read_records
from blockwise.results.record import Record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "results" / "selection"
IMAGES = (40, 20, 10, 5)
SPLITS = 5
MODELS = ("efficientnet_lite0", "mobilenet_v1", "mobilenet_v2")
COMMON = ["block=all", "data.image_size=96", "data.test_per_class=500", "trainer=cpu", "trainer.max_epochs=10"]


def main() -> None:
    """Train what the command line asks for."""
    data, *overrides = sys.argv[1:]
    own = {"images": IMAGES, "splits": (SPLITS,), "models": MODELS}
    for key in own:
        for word in [word for word in overrides if word.startswith(f"{key}=")]:
            values = word.partition("=")[2].split(",")
            own[key] = tuple(values if key == "models" else map(int, values))
            overrides.remove(word)
    name = next((word.partition("=")[2] for word in overrides if word.startswith("data.name=")), data)
    weights = [word for word in overrides if word.startswith("weights.")]
    overrides = [word for word in overrides if word not in weights]
    folds = next((int(word.partition("=")[2]) for word in overrides if word.startswith("folds=")), None)
    overrides = [word for word in overrides if not word.startswith("folds=")]
    for images in own["images"]:
        part = f"{images}-folds{folds}" if folds else str(images)
        folder = FOLDER / name / part
        for seed in range(own["splits"][0]):
            for model in own["models"]:
                own_weights = [word for word in weights if word.startswith(f"weights.{model}=")]
                checkpoint = [f"model.checkpoint={word.partition('=')[2]}" for word in own_weights]
                counts = [f"data.train_per_class={images}", f"data.val_per_class={images // 2}"]
                counts += [f"data.folds={folds}"] if folds else []
                places = [f"model={model}", f"data={data}", f"seed={seed}", f"results_dir={folder}"]
                command = [sys.executable, "train.py", *places, *COMMON, *counts, *checkpoint, *overrides]
                path = HERE / "results" / f"{name}-{part}.npz"
                if f"{model}/{seed}/scope" not in kept(path):
                    subprocess.run(command, check=True, cwd=ROOT)
                    collect(folder, path)


def collect(folder: Path, path: Path) -> None:
    """Write what the rules need of all sweeps in a folder: validation predictions, and accuracies on the test images.

    For each sweep `<backbone>/<seed>/` there are `scope` and `lr` of the cells, `test` (top-1 accuracy), `seconds`,
    `correct` (bits, cells x validation images), `likelihood` (of the true class, its log) and `images`.
    """
    groups: dict[str, list[Record]] = {}
    for record in read_records(folder):
        groups.setdefault(f"{record.backbone.name}/{record.seed}", []).append(record)
    arrays = kept(path)
    for key, records in groups.items():
        finished = [record for record in records if record.status == "finished"]
        for name, values in sweep_arrays(finished).items():
            arrays[f"{key}/{name}"] = values
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)


def kept(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; none if it does not exist."""
    return dict(np.load(path)) if path.is_file() else {}


def sweep_arrays(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the arrays of one sweep."""
    predictions = [read_predictions(record) for record in records]
    return {
        "scope": np.array([record.cell.scope for record in records]),
        "lr": np.array([record.lr for record in records]),
        "test": np.array([record.score("test") for record in records], np.float32),
        "seconds": np.array([record.seconds for record in records], np.float32),
        "correct": np.packbits(np.stack([one.correct for one in predictions]), axis=1),
        "likelihood": np.stack([one.log_likelihood for one in predictions]).astype(np.float16),
        "images": np.array([len(one.label) for one in predictions][:1]),
    }


if __name__ == "__main__":
    main()
