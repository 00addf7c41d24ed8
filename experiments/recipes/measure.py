"""Compare training recipes on real weights: which one is fair to the head, to blocks and to full fine-tuning?

    python experiments/recipes/measure.py digits                        # no download, about 15 minutes on two cores
    python experiments/recipes/measure.py caltech101 data.root=data recipes=constant,warm-up
    python experiments/recipes/measure.py imagefolder data.root=photos data.name=flowers
    python experiments/recipes/measure.py --tables     # write tables of what is recorded to results/

`recipes=` chooses some of them; further arguments are overrides of the config. Cells with a record are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from blockwise import read_records
from blockwise.results import read_records as typed_records
from blockwise.results.record import Record

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "results" / "recipes"
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
RECIPES = {
    "constant": [],
    "warm-up": ["scheduler.warmup=1"],
    "cosine": ["scheduler=cosine", "scheduler.warmup=1"],
    "cosine-clipped": ["scheduler=cosine", "scheduler.warmup=1", "optimizer.clip_norm=1"],
    "onecycle": ["scheduler=onecycle"],
    "batch-statistics": ["freeze.norm=train"],
    "cosine-batch-statistics": ["scheduler=cosine", "scheduler.warmup=1", "freeze.norm=train"],
    "layer-decay": ["scheduler=cosine", "scheduler.warmup=1", "optimizer.layer_decay=0.75"],
}
BLOCKS = "[head,2,4,6,8,10,full]"
SMALL = {
    "digits": ["trainer=cpu"],
    "caltech101": [
        "data.image_size=128",
        "data.train_per_class=10",
        "data.val_per_class=5",
        "data.test_per_class=5",
        "trainer=cpu",
    ],
    "imagefolder": ["data.image_size=128", "trainer=cpu"],
}
# rates that a default could try
CHOICES = {"0.001": (1e-3,), "0.0001 and 0.001": (1e-4, 1e-3), "0.0003 and 0.003": (3e-4, 3e-3), "all four": RATES}


def main() -> None:
    """Train the cells of a data set, or write the tables."""
    if sys.argv[1:] == ["--tables"]:
        for folder in sorted(FOLDER.iterdir()):
            cells(folder).to_csv(HERE / "results" / f"{folder.name}.csv", index=False)
            (HERE / "results" / f"{folder.name}.md").write_text(table(folder))
        return
    data, *overrides = sys.argv[1:]
    chosen = [word.removeprefix("recipes=") for word in overrides if word.startswith("recipes=")]
    recipes = chosen[0].split(",") if chosen else list(RECIPES)
    overrides = [word for word in overrides if not word.startswith("recipes=")]
    name = next((word.removeprefix("data.name=") for word in overrides if word.startswith("data.name=")), data)
    common = [
        f"data={data}",
        "partition=segment",
        f"block={BLOCKS}",
        f"optimizer.lr=[{','.join(map(str, RATES))}]",
        *SMALL[data],
    ]
    for recipe in recipes:
        command = [sys.executable, "train.py", *common, *RECIPES[recipe], *overrides]
        subprocess.run([*command, f"results_dir={FOLDER / name / recipe}"], check=True, cwd=ROOT)


def cells(folder: Path) -> pd.DataFrame:
    """Return accuracies of all cells: recipe, scope, rate, validation and test."""
    frames = [
        read_records(path)[["scope", "lr", "status", "val_top1", "test_top1"]].assign(recipe=path.name)
        for path in sorted(folder.iterdir())
    ]
    return pd.concat(frames).sort_values(["recipe", "scope", "lr"]).round(4)


def table(folder: Path) -> str:
    """Return test accuracies in % at the best rate by validation, for several choices of rates, as Markdown."""
    lines = ["| recipe | rates | head | best block | full | block - full |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for recipe in RECIPES:
        if not (folder / recipe).is_dir():
            continue
        records = typed_records(folder / recipe)
        for choice, rates in CHOICES.items():
            of_scope = {scope: best(records, scope, rates) for scope in {record.cell.scope for record in records}}
            blocks = [record for scope, record in of_scope.items() if scope.isdigit() and record is not None]
            block = max(blocks, key=lambda record: (record.selection_score, record.block))
            head, full = of_scope["head"], of_scope["full"]
            gain = 100 * (block.score("test") - full.score("test")) if full else float("nan")
            shown = f"{percent(block)} (block {block.cell.scope})"
            lines.append(f"| {recipe} | {choice} | {percent(head)} | {shown} | {percent(full)} | {gain:+.1f} |")
    return "\n".join(lines) + "\n"


def best(records: Sequence[Record], scope: str, rates: Sequence[float]) -> Record | None:
    """Return the record of a scope at the rate with the best validation accuracy; None if all diverged."""
    tried = [r for r in records if r.cell.scope == scope and r.lr in rates and r.status == "finished"]
    return max(tried, key=lambda record: record.selection_score, default=None)


def percent(record: Record | None) -> str:
    """Return test accuracy in % and the rate."""
    return "diverged" if record is None else f"{100 * record.score('test'):.1f} at {record.lr:g}"


if __name__ == "__main__":
    main()
