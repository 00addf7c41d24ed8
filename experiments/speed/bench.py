"""Compare the speed of a whole sweep with peers, and write the measurements, a table and a figure.

    python experiments/speed/bench.py            # minutes: EfficientNet-Lite0, one epoch, once
    python experiments/speed/bench.py --full     # hours: also ResNet-50, three epochs, three times

Contenders take turns. Each run is a separate process; its time includes imports, images, training, validation after
each epoch, and test. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from blockwise.results.provenance import provenance

HERE = Path(__file__).parent
CONTENDERS = ("plain", "tuned", "ours-fp32", "ours", "search", "full", "floor")
NAMES = {
    "plain": "plain Lightning, one fit per cell",
    "tuned": "tuned Lightning, one fit per cell",
    "ours-fp32": "blockwise, float32",
    "ours": "blockwise, bfloat16",
    "search": "blockwise, bfloat16, search=halving",
}
MODELS = {
    "efficientnet_lite0": ["model=efficientnet_lite0", "partition=segment"],
    # speed does not depend on the weights, and random ones need no download
    "resnet50": ["model=resnet50", "model.pretrained=false"],
}
DATA = "data=caltech101 data.image_size=160 data.batch_size=32 data.val_per_class=1 data.test_per_class=1".split()
COMMON = ["trainer=cpu", "trainer.precision=bf16-mixed", "block=all"]

Run = dict[str, Any]


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all models, three epochs, three times")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="which backbones")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="which contenders")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--data", default=os.environ.get("BLOCKWISE_DATA", "data"), help="folder with caltech101/")
    parser.add_argument("--images", type=int, default=5, help="labelled images per class; one of them validates")
    parser.add_argument("--out", type=Path, help="output folder (default: results/small or results/full)")
    options = parser.parse_args()
    models = options.models or (list(MODELS) if options.full else ["efficientnet_lite0"])
    epochs = options.epochs or (3 if options.full else 1)
    repetitions = options.repetitions or (3 if options.full else 1)
    out = options.out or HERE / "results" / ("full" if options.full else "small")
    out.mkdir(parents=True, exist_ok=True)
    settings = [*DATA, *COMMON, f"data.train_per_class={options.images}", f"trainer.max_epochs={epochs}"]
    runs: list[Run] = []
    for repetition in range(repetitions):
        for model in models:
            for contender in options.contenders:
                figures = measure(contender, [*settings, *MODELS[model], f"data.root={options.data}"])
                runs.append({"model": model, "contender": contender, "repetition": repetition, **figures})
                print(f"{repetition + 1}/{repetitions} {model} {contender}: {figures['seconds']:.1f} s", flush=True)
                report(runs, settings, out)
    print((out / "speed.md").read_text())


def measure(contender: str, overrides: list[str]) -> Run:
    """Run one contender in a new process and return its measurements."""
    command = [sys.executable, str(HERE / "contender.py"), contender, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"{contender} failed")
    figures: Run = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def report(runs: list[Run], settings: list[str], out: Path) -> None:
    """Write the measurements so far to speed.json, speed.md and speed.png."""
    about = {"settings": settings, "machine": machine(), **provenance()}
    del about["command"]
    (out / "speed.json").write_text(json.dumps({**about, "runs": runs}, indent=2) + "\n")
    (out / "speed.md").write_text(table(runs, about))
    picture(runs, out / "speed.png")


def machine() -> str:
    """Return the name of the processor, its number of cores and the operating system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def values(runs: list[Run], model: str, contender: str, figure: str = "seconds") -> list[float]:
    """Return one measurement, such as `seconds`, of all runs of a contender."""
    measured = [run.get(figure) for run in runs if run["model"] == model and run["contender"] == contender]
    return [value for value in measured if value is not None]


def table(runs: list[Run], about: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    lines = [
        "| backbone | 14 cells by | seconds (lowest to highest) | blockwise is faster by | with search | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in dict.fromkeys(run["model"] for run in runs):
        for contender, name in NAMES.items():
            if times := values(runs, model, contender):
                ratios = " | ".join(_ratio(times, values(runs, model, own)) for own in ("ours", "search"))
                lines.append(f"| {model} | {name} | {_spread(times)} | {ratios} | {_memory(runs, model, contender)} |")
        lines += _against_floor(runs, model)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    commit = f"{about['commit']}{' with changes' if about['dirty'] else ''}"
    images, epochs = (
        int(next(s.partition("=")[2] for s in about["settings"] if s.startswith(key)))
        for key in ("data.train_per_class", "trainer.max_epochs")
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Caltech-101, 160 px, batches of 32, crop and flip, {101 * (images - 1)} training and 101 validation "
            f"images, {epochs} epoch(s); medians. Each row times a whole process. "
            f"{about['machine']}; commit {commit}; {versions}.",
            "",
        ]
    )


def _ratio(times: list[float], ours: list[float]) -> str:
    faster = median(times) / median(ours) if ours else 0.0
    return f"{faster:.1f} x" if faster > 1 else ""


def _against_floor(runs: list[Run], model: str) -> list[str]:
    """Return two rows: a step against the sum of its parts, and a sweep's memory against that of its `full` cell."""
    lines = []
    floors = values(runs, model, "floor", "floor_step_seconds")
    trained = [(r["training_seconds"], r["steps"]) for r in runs if r["model"] == model and r["contender"] == "ours"]
    if floors and trained:
        steps = [seconds / count for seconds, count in trained]
        lines.append(
            f"| {model} | a step of blockwise, and the sum of its parts, each timed alone | {_spread(steps, 2)} and "
            f"{_spread(floors, 2)} | {median(steps) / median(floors):.2f} of the floor | | |"
        )
    full, ours = (values(runs, model, name, "peak_memory_bytes") for name in ("full", "ours"))
    if full and ours:
        lines.append(
            f"| {model} | the cell `full` alone | {_spread(values(runs, model, 'full'))} | | | "
            f"{_memory(runs, model, 'full')}: the sweep needs {median(ours) / median(full):.2f} times that |"
        )
    return lines


def _spread(times: list[float], digits: int = 0) -> str:
    middle = f"{median(times):.{digits}f}"
    return middle if len(times) == 1 else f"{middle} ({min(times):.{digits}f} to {max(times):.{digits}f})"


def _memory(runs: list[Run], model: str, contender: str) -> str:
    return f"{median(values(runs, model, contender, 'peak_memory_bytes')) / 1e9:.2f} GB"


def picture(runs: list[Run], path: Path) -> None:
    """Plot the contenders' times, one panel per backbone."""
    models = list(dict.fromkeys(run["model"] for run in runs))
    figure = Figure(figsize=(8, 0.6 + 1.9 * len(models)), layout="constrained")
    for axes, model in zip(figure.subplots(len(models), squeeze=False)[:, 0], models, strict=True):
        names = [contender for contender in NAMES if values(runs, model, contender)]
        times = [values(runs, model, contender) for contender in names]
        middle = [median(t) for t in times]
        below = [m - min(t) for m, t in zip(middle, times, strict=True)]
        above = [max(t) - m for m, t in zip(middle, times, strict=True)]
        colours = ["tab:blue" if name.startswith(("ours", "search")) else "lightgrey" for name in names]
        bars = axes.barh([NAMES[name] for name in names], middle, xerr=[below, above], color=colours, capsize=3)
        ours = values(runs, model, "ours")
        ratios = [f"  ({m / median(ours):.1f} x)" if ours and m != median(ours) else "" for m in middle]
        labels = [f"{m:.0f} s{ratio}" for m, ratio in zip(middle, ratios, strict=True)]
        axes.bar_label(bars, labels, padding=6)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_title(f"{model}: 14 cells", loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds, whole process: median, lowest and highest")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
