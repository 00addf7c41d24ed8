"""The table of a sweep for a terminal."""

from __future__ import annotations

import re
from statistics import fmean

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from blockwise.analysis.summary import SELECTED, Row, Sweep
from blockwise.analysis.uncertainty import Confidence, confidence, gain

# several blocks jointly
JOINT = re.compile(r"\d+(\+\d+)+|from\d+|top\d+")


def sweep_table(sweep: Sweep, *, smooth: bool = False) -> Table:
    """Return a table with one row per scope, the best block marked, and differences to both baselines in points.

    Args:
        sweep: The sweep.
        smooth: Say how sure the choice is if the scores are a smooth function of depth, and which block is best then.
    """
    head, full, best = sweep.row("head"), sweep.row("full"), sweep.best
    rates = len(sweep.rates) > 1
    seeds = len(sweep.seeds) > 1
    sure = confidence(sweep, smooth=smooth)
    table = Table(
        title=sweep.title,
        caption=_caption(sweep, sure),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("scope", no_wrap=True)
    headings = [
        "layers",
        "quarter",
        "trainable",
        "val",
        *(["P(best)"] if sure else []),
        "test",
        "Δ head",
        "Δ full",
        "time",
    ]
    for heading in [*headings, *(["rate"] if rates else []), *(["seeds"] if seeds else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sweep.rows:
        chosen = best is not None and row.scope == best.scope
        mark = " *" if chosen else " ~" if sure and row.scope in sure.scopes else ""
        cells = [row.scope + mark, *_cells(row, head, full)]
        if sure:
            cells.insert(5, f"{100 * sure.probability[row.scope]:.0f} %" if row.scope in sure.probability else "")
        own = sorted({record.lr for record in row.records}) or [row.lr]  # after a search, seeds may differ
        cells += [", ".join(f"{rate:g}" for rate in own)] if rates else []
        cells += [str(len(row.records))] if seeds else []
        table.add_row(*cells, style="bold green" if chosen else "" if row.records else "dim")
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table without dropping columns: if the terminal is too narrow, lines wrap."""
    width = console.width
    console.width = max(width, Measurement.get(console, console.options.update(max_width=200), table).maximum)
    console.print(table)
    console.width = width


def _cells(row: Row, head: Row | None, full: Row | None) -> list[str]:
    if not (row.records or row.pruned):
        return ["", "", "", "diverged", "", "", "", ""]
    cell = (row.records or row.pruned)[0].cell
    layers = cell.layers
    what = [f"{layers[0]}-{layers[1]}" if layers else "", str(cell.quarter or ""), f"{cell.trainable_parameters:,}"]
    if not row.records:
        return [*what, "pruned", "", "", "", f"{sum(record.seconds for record in row.pruned):.1f} s"]
    return [
        *what,
        percent(row, "val"),
        percent(row, "test"),
        difference(row, head),
        difference(row, full),
        f"{fmean(record.seconds for record in row.records):.1f} s",
    ]


def percent(row: Row, split: str) -> str:
    """Return the accuracy of a row in %, with its standard deviation if there are several seeds."""
    spread = row.spread(split)
    return f"{100 * row.mean(split):.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def difference(row: Row, baseline: Row | None) -> str:
    """Return the gain of a row over a baseline in points; empty if there is none."""
    gain = None if baseline is None or row.scope == baseline.scope else row.difference(baseline)
    return "" if gain is None else f"{100 * gain:+.1f}"


def _caption(sweep: Sweep, sure: Confidence | None) -> str:
    data, best = sweep.records[0].data, sweep.best
    lines = [
        f"{data.classes} classes, {data.image_size} px; {data.train:,} images to train, {data.val:,} to "
        f"validate, {data.test:,} to test; top-1 accuracy in %"
        + (", ± its standard deviation over seeds" if len(sweep.seeds) > 1 else "")
    ]
    if (joint := _best_set(sweep)) is not None:
        lines.append(f"best set of blocks by validation: {joint.scope}, test accuracy {percent(joint, 'test')}")
    if sweep.search is not None:
        lines.append(_searched(sweep))
    if best is not None:
        by = f"validation {SELECTED[sweep.select_by]}"
        lines.append(f"* best block by {by}; test accuracy {percent(best, 'test')}{_verdict(sweep, best)}")
        if sure is not None:
            lines.append(_how_sure(best, sure))
        if sure is not None and sure.smooth:
            lines.append(f"if neighbouring blocks are alike, block {sure.expected_best} is expected to be the best")
    if at_edge := [row.scope for row in (sweep.row("head"), best, sweep.row("full")) if row and _at_edge(sweep, row)]:
        lines.append(f"best at the lowest or highest rate that was tried: {', '.join(at_edge)}; try further rates")
    return "\n".join(lines)


def _at_edge(sweep: Sweep, row: Row) -> bool:
    """Return whether a scope is best at the lowest or the highest of several rates."""
    rates = {record.lr for record in sweep.records if record.cell.scope == row.scope}
    return len(rates) > 1 and row.lr in (min(rates), max(rates))


def _best_set(sweep: Sweep) -> Row | None:
    """Return the best joint scope by validation, `full` left out; None if there is no choice."""
    sets = [row for row in sweep.rows if row.records and JOINT.fullmatch(row.scope)]
    return max(sets, key=lambda row: row.selection_score(row.seeds)) if len(sets) > 1 else None


def _searched(sweep: Sweep) -> str:
    """Say which cells a search stopped, and how much training that saved."""
    pruned = [record for record in sweep.records if record.status == "pruned"]
    full = max((record.epochs for record in sweep.records if record.status == "finished"), default=0)
    epochs = sum(record.epochs for record in sweep.records)
    share = f", {100 * epochs / (full * len(sweep.records)):.0f} % of all epochs" if full else ""
    return (
        f"search={sweep.search} stopped {len(pruned)} of {len(sweep.records)} cells{share}; * is the best block among "
        "those that trained to their end"
    )


def _how_sure(best: Row, sure: Confidence) -> str:
    """Say which other blocks may be the best."""
    others = [scope for scope in sure.scopes if scope != best.scope]
    if not others:
        return f"P(best) of this block is {100 * sure.probability[best.scope]:.0f} %, by the validation images"
    unclear = "no clear best block: " if 2 * len(sure.scopes) > len(sure.probability) else ""
    total = sum(sure.probability[scope] for scope in {best.scope, *sure.scopes})
    return f"{unclear}~ may also be the best block; P(best) of the blocks marked * or ~ is {100 * total:.0f} % together"


def _interval(row: Row, baseline: Row) -> str:
    found = gain(row, baseline)
    return "" if found is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _verdict(sweep: Sweep, best: Row) -> str:
    """Return the differences of the best block to the recorded baselines, with their 95 % intervals."""
    baselines = (("head only", sweep.row("head")), ("full", sweep.row("full")))
    differences = [
        f"{shown} over {name}{_interval(best, row)}"
        for name, row in baselines
        if row is not None and (shown := difference(best, row))
    ]
    seeds = " and seeds" if len(sweep.seeds) > 1 else ""
    intervals = f"; 95 % intervals over test images{seeds}" if "[" in "".join(differences) else ""
    return f" ({', '.join(differences)}{intervals})" if differences else ""
