"""A sweep -> a picture of accuracy by block."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blockwise.analysis.summary import Sweep

# Okabe & Ito (2008): distinguishable with colour vision deficiency, and in print
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"


def accuracy_by_block(sweep: Sweep, path: Path) -> Path:
    """Draw test and validation accuracy of every single block beside both baselines, and return the path."""
    rows = sorted(sweep.single_blocks, key=lambda row: row.blocks)
    blocks = [row.blocks[0] for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    test = [100 * row.mean("test") for row in rows]
    errors = [100 * (row.spread("test") or 0) for row in rows]
    axes.errorbar(
        blocks, test, yerr=errors if any(errors) else None, color=BLUE, marker="o", capsize=3, label="block, test"
    )
    axes.plot(
        blocks, [100 * row.mean("val") for row in rows], color=GREY, marker=".", ls=":", label="block, validation"
    )
    for name, color, style in (("head", ORANGE, "--"), ("full", GREEN, "-.")):
        if (baseline := sweep.row(name)) is not None:
            label = {"head": "head only, test", "full": "full fine-tuning, test"}[name]
            axes.axhline(100 * baseline.mean("test"), color=color, ls=style, label=label)
    if sweep.best is not None:
        top = (sweep.best.blocks[0], 100 * sweep.best.mean("test"))
        axes.plot(*top, marker="*", ms=16, color=BLUE, mec="white", ls="none", label="best block (by validation)")
    axes.set(xlabel="trained block (0 touches the pixels)", ylabel="top-1 accuracy, %", title=sweep.title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=24))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    return path
