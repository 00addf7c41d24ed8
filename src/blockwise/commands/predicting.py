"""Print predictions and metrics of an exported network."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from blockwise.analysis.sweep_table import print_table
from blockwise.exports.base import other_precision
from blockwise.exports.use.evaluate import Evaluation
from blockwise.exports.use.predict import Prediction
from blockwise.io.names import printable


def print_predictions(found: Sequence[Prediction], console: Console, kind: str) -> None:
    """Print predictions as a `table`, `json` or `csv`; images that cannot be read are left out of the table."""
    if kind == "json":
        lines = [
            {
                "image": str(one.image),
                "predictions": [
                    {"class": name, "probability": round(share, 6)}
                    for name, share in zip(one.classes, one.probabilities, strict=True)
                ],
                **({} if one.error is None else {"error": one.error}),
            }
            for one in found
        ]
        print(json.dumps(lines, indent=2, ensure_ascii=False))
        return
    rows = [
        [str(one.image), place, name, f"{share:.6f}" if kind == "csv" else f"{100 * share:.1f} %"]
        for one in found
        for place, (name, share) in enumerate(zip(one.classes, one.probabilities, strict=True), 1)
    ]
    if kind == "csv":
        csv.writer(sys.stdout).writerows([["image", "rank", "class", "probability"], *rows])
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for image, place, name, share in rows:
        table.add_row(printable(str(image)) if place == 1 else "", printable(str(name)), str(share))
    print_table(console, table)


def print_metrics(found: Evaluation, console: Console, *, as_json: bool) -> None:
    """Print the metrics of an export beside those of its record, if they are of the same images."""
    record = found.exported.record
    recorded = (record.metrics.test or {}) if found.same_images else {}
    if as_json:
        print(json.dumps({"images": found.images, "metrics": found.metrics, "record": recorded}, indent=2))
        return
    skipped = f", {found.skipped:,} more cannot be read" if found.skipped else ""
    table = Table(
        title=f"{found.images:,} test images{skipped}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("metric")
    table.add_column("export", justify="right")
    table.add_column("record", justify="right")
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.4f}", f"{recorded[name]:.4f}" if name in recorded else "")
    if not found.same_images:
        table.caption = (
            "These are not the images and the split that the cell was trained and tested on, so its record is not "
            "compared, and images that it was trained on may be among them."
        )
        table.caption_justify = "left"
    elif (precision := other_precision(record)) is not None:
        table.caption = f"The cell was tested in {precision}; the export computes in float32. A few images differ."
        table.caption_justify = "left"
    print_table(console, table)
