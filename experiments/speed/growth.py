"""Measure how the time of a sweep grows with the number of blocks, the image size, the number of images and epochs.

    python experiments/speed/growth.py           # about ten minutes

EfficientNet-Lite0 on Caltech-101; one setting varies at a time. Each point is a separate process, including start-up.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from matplotlib.figure import Figure

from bench import HERE, MODELS, Run, machine, measure
from blockwise.results.provenance import provenance

BASE = {
    "data": "caltech101",
    "data.val_per_class": 1,
    "data.test_per_class": 1,
    "trainer": "cpu",
    "trainer.precision": "bf16-mixed",
    "block": "all",
    "partition.num_blocks": 12,
    "data.image_size": 160,
    "data.train_per_class": 5,
    "trainer.max_epochs": 1,
}
CLASSES = 101
PANELS = {
    "partition.num_blocks": ("blocks", (3, 6, 12, 24)),
    "data.image_size": ("side of the images, pixels", (96, 128, 160, 192, 224)),
    "data.train_per_class": ("training images", (3, 5, 9, 17)),
    "trainer.max_epochs": ("epochs", (1, 2, 4, 6)),
}


def main() -> None:
    """Measure and plot all points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("BLOCKWISE_DATA", "data"), help="folder with caltech101/")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "growth")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    points: list[Run] = []
    for key, (_, settings) in PANELS.items():
        for value in settings:
            overrides = [f"{k}={v}" for k, v in {**BASE, key: value, "data.root": options.data}.items()]
            overrides += MODELS["efficientnet_lite0"]
            figures = measure("ours", overrides)
            if key == "partition.num_blocks":
                figures["floor_step_seconds"] = measure("floor", overrides)["floor_step_seconds"]
            points.append({"setting": key, "value": value, **figures})
            print(f"{key}={value}: {figures['seconds']:.1f} s", flush=True)
            about = {**provenance(), "machine": machine()}
            del about["command"]
            (options.out / "growth.json").write_text(
                json.dumps({**about, "base": BASE, "points": points}, indent=2) + "\n"
            )
            draw(points, options.out / "growth.png")


def draw(points: list[Run], path: Path) -> None:
    """Plot the time against each setting."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (key, (label, _)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        own = [point for point in points if point["setting"] == key]
        values = [point["value"] for point in own]
        if key == "data.train_per_class":
            values = [(value - BASE["data.val_per_class"]) * CLASSES for value in values]
        axes.plot(values, [p["seconds"] for p in own], "o-", label="whole process")
        axes.plot(values, [p["training_seconds"] for p in own], "s-", label="training")
        floors = [p["floor_step_seconds"] * p["steps"] for p in own if "floor_step_seconds" in p]
        if floors:
            axes.plot(values, floors, "x--", color="grey", label="training: sum of its parts, each timed alone")
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.set_xticks(values)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        if own:
            axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
