"""The paper's table: one row per backbone, with both baselines and the best block."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from blockwise.analysis.summary import Sweep
from blockwise.analysis.sweep_table import difference, percent
from blockwise.errors import InputError
from blockwise.io.names import markdown, spreadsheet
from blockwise.results.record import STATIC

HEADINGS = tuple("data,backbone,partition,seeds,head,full,best block,block,quarter,Δ head,Δ full".split(","))
WRITERS = (".csv", ".md")


def backbone_rows(sweeps: Sequence[Sweep]) -> list[dict[str, str]]:
    """Return one row per sweep: test accuracies in %, mean and standard deviation over seeds.

    The best block is selected on validation. Gains are in percentage points, over the seeds that both have.
    """
    return [_row(sweep) for sweep in sweeps]


def backbone_table(rows: Sequence[dict[str, str]]) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[heading] for heading in HEADINGS))
    return table


def write_rows(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Write the rows as CSV or Markdown, depending on the suffix of the file.

    Raises:
        InputError: The suffix is neither `.csv` nor `.md`, or the file cannot be written.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path} must end in {' or '.join(WRITERS)}")
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".csv":
                writer = csv.DictWriter(file, HEADINGS)
                writer.writeheader()
                writer.writerows({heading: spreadsheet(row[heading]) for heading in HEADINGS} for row in rows)
            else:
                lines = [HEADINGS, ["---"] * len(HEADINGS), *([markdown(row[h]) for h in HEADINGS] for row in rows)]
                file.writelines(f"| {' | '.join(line)} |\n" for line in lines)
    except OSError as error:
        raise InputError(f"{path} cannot be written to ({error.strerror})") from error


def _row(sweep: Sweep) -> dict[str, str]:
    best = sweep.best
    head, full = sweep.row("head"), sweep.row("full")
    values: tuple[Any, ...] = (
        sweep.data,
        sweep.backbone,
        sweep.partition if sweep.policy == STATIC else f"{sweep.partition}, policy {sweep.policy}",
        len(sweep.seeds),
        *(percent(row, "test") if row else "" for row in (head, full, best)),
        best.scope if best else "",
        best.records[0].cell.quarter if best else "",
        *(difference(best, baseline) if best else "" for baseline in (head, full)),
    )
    return dict(zip(HEADINGS, map(str, values), strict=True))
