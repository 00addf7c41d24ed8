"""Matplotlib figures of sweeps. In a report, black lines and text take the text colour of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from blockwise.analysis.summary import PARTS, Row, Sweep
from blockwise.analysis.uncertainty import confidence
from blockwise.results.record import Record

if TYPE_CHECKING:  # the figure of a single sweep must not import pandas
    import pandas as pd

    from blockwise.analysis.statistics import Ranks

# Okabe & Ito (2008): distinguishable with colour vision deficiency, and in print
BLUE, ORANGE, GREEN, GREY, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#8c8c8c", "#CC79A7", "#56B4E9"
# not quite black, so that it keeps its colour on a dark page
INK = "#010101"
BASELINES = {"head": ("head only", ORANGE, "--"), "full": ("full fine-tuning", GREEN, "-.")}
QUARTER_COLORS = {1: "#9ecae1", 2: SKY, 3: BLUE, 4: "#08306b"}
Cost = Literal["trainable", "seconds"]
COSTS = {"trainable": "trainable parameters", "seconds": "seconds per cell"}


def accuracy_by_block(sweeps: Sequence[Sweep]) -> Figure:
    """Plot the accuracy of every block and both baselines, mean and standard deviation, one panel per sweep."""
    figure, panels = _panels(len(sweeps), width=7 if len(sweeps) == 1 else 10, height=4 if len(sweeps) == 1 else 2.4)
    for axes, sweep in zip(panels, sweeps, strict=True):
        _draw_blocks(axes, sweep)
        axes.set_title(sweep.title if len(sweeps) == 1 else sweep.backbone)
    _label(panels, "trained block (0 touches the pixels)" if len(sweeps) == 1 else "trained block", "top-1 accuracy, %")
    _legend(figure, panels)
    return figure


def _draw_blocks(axes: Axes, sweep: Sweep) -> None:
    rows = sorted(sweep.single_blocks, key=lambda row: row.blocks)
    blocks = [row.blocks[0] for row in rows]
    test, spread = (np.array([100 * (value(row) or 0) for row in rows]) for value in (_test, _spread))
    if (sure := confidence(sweep)) is not None:
        for block in map(int, sure.scopes):
            label = f"one of these is the best block ({100 * sure.level:.0f} %)"
            axes.axvspan(block - 0.5, block + 0.5, color=SKY, alpha=0.15, lw=0, label=label)
    axes.fill_between(blocks, test - spread, test + spread, color=BLUE, alpha=0.2, lw=0)
    axes.plot(blocks, test, color=BLUE, marker="o", ms=4, label="block, test")
    axes.plot(
        blocks, [100 * row.mean("val") for row in rows], color=GREY, marker=".", ls=":", label="block, validation"
    )
    parts = [row.scope for row in sweep.rows if PARTS.fullmatch(row.scope)]
    colors = cycle([PURPLE, SKY, GREY])
    for name, (label, color, style) in (BASELINES | {part: (part, next(colors), ":") for part in parts}).items():
        if (row := sweep.row(name)) is not None:
            mean, deviation = 100 * row.mean("test"), 100 * (row.spread("test") or 0)
            axes.axhline(mean, color=color, ls=style, label=f"{label}, test")
            axes.axhspan(mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
    if sweep.best is not None:
        top = (sweep.best.blocks[0], 100 * sweep.best.mean("test"))
        axes.plot(*top, marker="*", ms=13, color=BLUE, mec="white", ls="none", label="best block (by validation)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.grid(alpha=0.3)


def depth_map(sweeps: Sequence[Sweep], baseline: str = "head") -> Figure:
    """Plot the gain of each block over a baseline by depth, one row per backbone; a star marks the best block."""
    figure = Figure(figsize=(8, 1.4 + 0.32 * len(sweeps)), layout="constrained")
    axes = figure.add_subplot()
    bases = [sweep.row(baseline) for sweep in sweeps]
    gains = [
        [(row.blocks[0], row.difference(base)) for row in sweep.single_blocks] if base else []
        for sweep, base in zip(sweeps, bases, strict=True)
    ]
    limit = max((abs(gain) for line in gains for _, gain in line if gain is not None), default=0) * 100 or 1
    colors = None
    for line, (sweep, blocks) in enumerate(zip(sweeps, gains, strict=True)):
        values = np.full((1, sweep.num_blocks), np.nan)
        for block, gain in blocks:
            values[0, block] = np.nan if gain is None else 100 * gain
        colors = axes.imshow(
            values, cmap="PuOr_r", vmin=-limit, vmax=limit, extent=(0, 1, line + 0.46, line - 0.46), aspect="auto"
        )
        if sweep.best is not None:
            axes.plot((sweep.best.blocks[0] + 0.5) / sweep.num_blocks, line, marker="*", color=INK, mec="white", ms=10)
    axes.set(xlim=(0, 1), ylim=(len(sweeps) - 0.5, -0.5), xlabel="depth of the block (0 touches the pixels)")
    axes.set_yticks(range(len(sweeps)), [sweep.backbone for sweep in sweeps])
    if colors is not None:
        bar = figure.colorbar(colors, label=f"over {baseline}")
        bar.ax.set_title("points", fontsize="medium")
    return figure


def gain_by_quarter(sweeps: Sequence[Sweep], treatment: Callable[[Sweep, str], Row | None]) -> Figure:
    """Plot the gain of each quarter's best block (by validation) over both baselines: box plots, one dot per sweep."""
    figure, panels = _panels(2, width=8, height=3.2, columns=2)
    for axes, (baseline, (label, _, _)) in zip(panels, BASELINES.items(), strict=True):
        columns: list[list[float]] = []
        for quarter in (1, 2, 3, 4):
            rows = [(treatment(sweep, f"quarter {quarter}"), sweep.row(baseline)) for sweep in sweeps]
            gains = [row.difference(base) for row, base in rows if row is not None and base is not None]
            columns.append([100 * gain for gain in gains if gain is not None])
        axes.axhline(0, color=GREY, lw=1)
        axes.boxplot(columns, widths=0.5, showfliers=False, medianprops={"color": ORANGE, "lw": 2})
        for position, column in enumerate(columns, start=1):
            offsets = np.linspace(-0.12, 0.12, len(column)) if len(column) > 1 else np.zeros(len(column))
            axes.plot(position + offsets, column, "o", color=BLUE, alpha=0.6, ms=4)
        axes.set(xlabel="quarter of the network", ylabel="gain, points", title=f"over {label}")
        axes.grid(axis="y", alpha=0.3)
    return figure


def accuracy_against_cost(sweeps: Sequence[Sweep], cost: Cost) -> Figure:
    """Plot the accuracy of every scope against its cost; a line joins the Pareto front by validation accuracy."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    points = []
    for row in (row for sweep in sweeps for row in sweep.rows if row.records):
        points.append((_cost(row, cost), row.mean("val"), 100 * row.mean("test")))
        axes.plot(points[-1][0], points[-1][2], "o", ms=5, alpha=0.75, mew=0, color=_color(row))
    front, best = [], -1.0
    for x, val, test in sorted(points, key=lambda point: (point[0], -point[1])):
        if val > best:
            best = val
            front.append((x, test))
    axes.plot(*zip(*front, strict=True), color=PURPLE, lw=1.5, marker="o", mfc="none", ms=9, drawstyle="steps-post")
    axes.set(xscale="log", xlabel=COSTS[cost], ylabel="top-1 test accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if cost == "trainable" else StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    names = {"head only": ORANGE, **{f"block of quarter {q}": c for q, c in QUARTER_COLORS.items()}}
    names |= {"several blocks": GREY, "full fine-tuning": GREEN}
    dots = [Line2D([], [], ls="none", marker="o", color=color, label=name) for name, color in names.items()]
    line = Line2D([], [], color=PURPLE, marker="o", mfc="none", ms=9, label="Pareto front by validation")
    figure.legend(handles=[*dots, line], loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def selection_cost(sweeps: Sequence[Sweep]) -> Figure:
    """Plot the test accuracy of the block selected by validation and of the best block on test."""
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(sweeps)), layout="constrained")
    axes = figure.add_subplot()
    for line, sweep in enumerate(sweeps):
        if sweep.best is None:
            continue
        chosen, highest = 100 * sweep.best.mean("test"), 100 * max(row.mean("test") for row in sweep.single_blocks)
        axes.plot([chosen, highest], [line, line], color=GREY, lw=2, zorder=1)
        axes.plot(highest, line, "D", color=ORANGE, label="highest on test", zorder=2)
        axes.plot(chosen, line, "o", color=BLUE, label="chosen by validation", zorder=3)
    axes.set_yticks(range(len(sweeps)), [sweep.backbone for sweep in sweeps])
    axes.set(xlabel="top-1 test accuracy, %", ylim=(len(sweeps) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    _legend(figure, [axes])
    return figure


def training_curves(sweeps: Sequence[Sweep], history: Callable[[Row], pd.Series | None]) -> Figure | None:
    """Plot validation accuracy by epoch, one panel per sweep; return None if there is no history.

    Args:
        sweeps: The sweeps to plot.
        history: Returns the accuracies of a row, one per epoch, or None.
    """
    curves = [
        {row.scope: curve for row in s.rows if row.records and (curve := history(row)) is not None} for s in sweeps
    ]
    if not any(curves):
        return None
    figure, panels = _panels(len(sweeps), width=10, height=2.4)
    for axes, sweep, curve_of in zip(panels, sweeps, curves, strict=True):
        best = sweep.best.scope if sweep.best else None
        highlighted = {"" if best is None else best: ("best block", BLUE, "-"), **BASELINES}
        for scope, curve in sorted(curve_of.items(), key=lambda item: item[0] in highlighted):
            label, color, style = highlighted.get(scope, ("other scopes", GREY, "-"))
            width = 2 if scope in highlighted else 0.6
            axes.plot(curve.index + 1, 100 * curve, color=color, ls=style, lw=width, label=label)
        axes.set_title(sweep.backbone)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    _label(panels, "epoch", "validation accuracy, %")
    _legend(figure, panels)
    return figure


def search_course(sweeps: Sequence[Sweep], history: Callable[[Record], Sequence[float]]) -> Figure | None:
    """Plot how long each cell trained and how accurate it was, one panel per sweep with a search; None without any.

    Args:
        sweeps: The sweeps; of each, the cells of the first seed are plotted.
        history: Returns the validation accuracies of a record, one per epoch.
    """
    searched = [sweep for sweep in sweeps if sweep.search is not None]
    if not searched:
        return None
    figure, panels = _panels(len(searched), width=10, height=2.8)
    for axes, sweep in zip(panels, searched, strict=True):
        of_seed = [record for record in sweep.records if record.seed == min(sweep.seeds)]
        for record in sorted(of_seed, key=lambda record: record.status == "finished"):
            best = 100 * np.maximum.accumulate(np.array(history(record)))
            if not len(best) or record.status == "diverged":
                continue
            stopped, block = record.status == "pruned", record.block is not None
            color, style = (BLUE, "-") if block else BASELINES.get(record.cell.scope, ("", PURPLE, ":"))[1:]
            label = "block" if block else record.cell.scope
            if stopped:
                color, style, label = GREY, "-", "stopped"
            epochs = np.arange(1, len(best) + 1)
            axes.plot(epochs, best, color=color, ls=style, lw=0.7 if stopped else 1.5, label=label)
            axes.plot(epochs[-1], best[-1], "x" if stopped else "o", color=color, ms=4)
            axes.annotate(
                record.cell.scope, (epochs[-1], best[-1]), (3, 0), textcoords="offset points", va="center",
                color=color, fontsize="x-small",
            )  # fmt: skip
        axes.set_title(f"{sweep.backbone}, search={sweep.search}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    _label(panels, "epoch", "best validation\naccuracy so far, %")
    _legend(figure, panels)
    return figure


def confusion(matrix: pd.DataFrame) -> Figure:
    """Plot a confusion matrix of fractions: true classes in rows, predicted classes in columns."""
    side = 2.6 + 0.26 * len(matrix)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    colors = axes.imshow(matrix.to_numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(matrix)), list(matrix.columns), rotation=90)
    axes.set_yticks(range(len(matrix)), list(matrix.index))
    axes.set(xlabel="predicted", ylabel="true")
    if len(matrix) <= 12:
        for (line, column), value in np.ndenumerate(matrix.to_numpy()):
            if value >= 0.005:
                color = "white" if value > 0.5 else INK
                axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize="small")
    figure.colorbar(colors, format=PercentFormatter(1), shrink=0.7)
    return figure


def class_gains(gains: pd.Series) -> Figure:
    """Plot the gain in accuracy (fractions) of each class as bars."""
    figure = Figure(figsize=(7, 1.2 + 0.26 * len(gains)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(gains)), 100 * gains, color=[BLUE if gain >= 0 else ORANGE for gain in gains])
    axes.set_yticks(range(len(gains)), list(gains.index))
    axes.set(ylim=(len(gains) - 0.5, -0.5), xlabel="gain in class accuracy over head only, points")
    axes.axvline(0, color=GREY, lw=1)
    axes.grid(axis="x", alpha=0.3)
    return figure


def critical_differences(ranks: Ranks) -> Figure:
    """Plot mean ranks; bars join treatments that do not differ significantly in Nemenyi's test (Demsar, 2006)."""
    from scikit_posthocs import critical_difference_diagram

    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.add_subplot()
    critical_difference_diagram(ranks.mean_ranks, ranks.nemenyi, ax=axes, label_fmt_left="{label} ({rank:.2f})  ",
                                label_fmt_right="  ({rank:.2f}) {label}")  # fmt: skip
    return figure


def _panels(number: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with `number` panels, each `height` inches high."""
    columns = min(columns, number)
    lines = ceil(number / columns)
    figure = Figure(figsize=(width, height * lines + (0.8 if lines > 1 else 0)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for unused in grid.flat[number:]:
        unused.set_axis_off()
    return figure, list(grid.flat[:number])


def _label(panels: Sequence[Axes], x: str, y: str) -> None:
    """Label the axes of the left column and of the lowest panels."""
    for axes in panels:
        spec = axes.get_subplotspec()
        assert spec is not None
        if spec.is_first_col():
            axes.set_ylabel(y)
        if axes in panels[-spec.get_gridspec().ncols :]:
            axes.set_xlabel(x)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend below all panels, with each label once."""
    named: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named = {**dict(zip(labels, handles, strict=True)), **named}
    figure.legend(
        list(named.values()), list(named), fontsize="small", loc="outside lower center", ncols=3, frameon=False
    )


def _test(row: Row) -> float:
    return row.mean("test")


def _spread(row: Row) -> float | None:
    return row.spread("test")


def _cost(row: Row, cost: Cost) -> float:
    if cost == "trainable":
        return float(row.records[0].cell.trainable_parameters)
    return float(np.mean([record.seconds for record in row.records]))


def _color(row: Row) -> str:
    if row.scope in BASELINES:
        return BASELINES[row.scope][1]
    return QUARTER_COLORS.get(row.records[0].cell.quarter or 0, GREY)
