"""Records -> a report: one page that needs no network, and its tables and figures as files."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from io import StringIO
from itertools import groupby
from pathlib import Path

import itables
import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from blockwise.analysis import figures, tables
from blockwise.analysis.report.classes import confusion_matrix, gains_by_class, history, predictions
from blockwise.analysis.statistics import accuracy_matrix, ranks, treatment
from blockwise.analysis.summary import Sweep, sweeps
from blockwise.errors import InputError
from blockwise.results.record import Record
from blockwise.results.store import PER_CELL

PAGE = "index.html"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: Of its files.
        title: Its heading.
        note: What it shows, for those who cannot see it, too.
        figure: What is drawn.
    """

    name: str
    title: str
    note: str
    figure: Figure

    @cached_property
    def drawing(self) -> str:
        """The figure as SVG, on nothing."""
        text = StringIO()
        with mpl.rc_context({"svg.hashsalt": self.name}):  # the same figure gives the same file
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        self.figure.set_layout_engine("none")  # everything has its place by now: other formats need not look for it
        return text.getvalue()

    def save(self, folder: Path) -> list[Path]:
        """Write it as SVG and PNG."""
        paths = [folder / f"{self.name}.{suffix}" for suffix in ("svg", "png")]
        paths[0].write_text(self.drawing, encoding="utf-8")
        self.figure.savefig(paths[1], dpi=150)
        return paths

    @property
    def svg(self) -> str:
        """The drawing for a page, narrower where there is no room; black takes the colour of the page's text."""
        drawing = self.drawing[self.drawing.index("<svg") :]
        drawing = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 role="img" style="max-width: \2"', drawing, count=1)
        drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
        return re.sub(r"#000000|(?<=stroke: )black|(?<=fill: )black", "currentColor", drawing)


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `index.html`, `tables/` and `figures/` and return the path of the page.

    Raises:
        InputError: The folder cannot be written to.
    """
    found = sweeps(records)
    shown = list(_tables(found, records))
    with mpl.rc_context({"text.parse_math": False}):  # names may hold a dollar
        drawn = list(_pictures(found))
    try:
        parts: Sequence[tables.ReportTable | Picture]
        for name, parts in (("tables", shown), ("figures", drawn)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for part in parts:
                part.save(folder / name)
        page = folder / PAGE
        page.write_text(_page(found, records, shown, drawn), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written to ({error.strerror})") from error
    return page


def _tables(found: Sequence[Sweep], records: Sequence[Record]) -> Iterator[tables.ReportTable]:
    yield tables.claims_table(found)
    yield tables.summary_table(found)
    yield tables.quarters_table(found)
    yield tables.tests_table(found)
    if (ranked := ranks(accuracy_matrix(found))) is not None:
        yield tables.ranks_table(ranked)
    yield tables.selection_table(found)
    yield tables.scopes_table(found)
    if (gaps := tables.gaps_table(found)) is not None:
        yield gaps
    yield tables.provenance_table(records)


def _pictures(found: Sequence[Sweep]) -> Iterator[Picture]:
    def by_place(sweep: Sweep) -> tuple[str, str]:
        return sweep.data, sweep.partition

    for (data, partition), group in groupby(sorted(found, key=by_place), key=by_place):
        sweeps_of = [sweep for sweep in group if sweep.single_blocks]
        if sweeps_of:
            yield from _of_one_data_set(sweeps_of, f"{data}, {partition}", f"{data}-{partition}")
    with_blocks = [sweep for sweep in found if sweep.single_blocks]
    if any(sweep.row(name) for sweep in with_blocks for name in figures.BASELINES):
        yield Picture(
            "gain-by-quarter",
            "Gain by quarter",
            "What the best block of each quarter (by validation) gains over both baselines: a dot for each backbone "
            "and data set, boxes from quartile to quartile.",
            figures.gain_by_quarter(with_blocks, treatment),
        )
    if (ranked := ranks(accuracy_matrix(found))) is not None:
        yield Picture(
            "critical-differences",
            "Critical differences",
            "Mean ranks, 1 the most accurate; a bar joins what Nemenyi's test does not tell apart.",
            figures.critical_differences(ranked),
        )


def _of_one_data_set(found: Sequence[Sweep], title: str, name: str) -> Iterator[Picture]:
    yield Picture(
        f"accuracy-by-block-{name}",
        f"Accuracy by block: {title}",
        "Mean test accuracy of each block beside both baselines; bands are a standard deviation over seeds.",
        figures.accuracy_by_block(found),
    )
    if any(sweep.row("head") for sweep in found):
        yield Picture(
            f"depth-{name}",
            f"Gain by depth: {title}",
            "Test accuracy of each block minus that of the head alone, from the pixels (0) to the head (1). Stars: "
            "blocks chosen by validation.",
            figures.depth_map(found),
        )
    costs: tuple[figures.Cost, ...] = ("trainable", "seconds")
    for cost in costs:
        yield Picture(
            f"{cost}-{name}",
            f"Accuracy against {figures.COSTS[cost]}: {title}",
            "Every scope of every backbone, mean over seeds.",
            figures.accuracy_against_cost(found, cost),
        )
    yield Picture(
        f"selection-{name}",
        f"Chosen by validation, highest on test: {title}",
        "The distance between the two is what an honest choice costs.",
        figures.selection_cost(found),
    )
    if (curves := figures.training_curves(found, history)) is not None:
        yield Picture(f"curves-{name}", f"Training: {title}", "Validation accuracy by epoch, mean over seeds.", curves)
    yield from _of_the_best_cell(found, title, name)


def _of_the_best_cell(found: Sequence[Sweep], title: str, name: str) -> Iterator[Picture]:
    """Draw what the best block of the backbone that validates best confuses, and which classes gain most by it."""
    sweep = max(found, key=lambda sweep: sweep.single_blocks[0].mean("val"))
    best, head = sweep.single_blocks[0], sweep.row("head")
    if (kept := predictions(best)) is None:
        return
    which = f"{sweep.backbone}, block {best.scope}"
    matrix = confusion_matrix(kept)
    part = "" if len(matrix) == kept["label"].nunique() else f" The {len(matrix)} classes with the most errors."
    yield Picture(
        f"confusion-{name}",
        f"What the best cell confuses: {which}, {title}",
        f"Fractions of the test images of a true class.{part}",
        figures.confusion(matrix),
    )
    if head is not None and (base := predictions(head)) is not None:
        yield Picture(
            f"class-gains-{name}",
            f"Which classes gain: {which}, {title}",
            "By how much the block recognises each class more often than the head alone.",
            figures.class_gains(gains_by_class(kept, base)),
        )


def _page(
    found: Sequence[Sweep],
    records: Sequence[Record],
    shown: Sequence[tables.ReportTable],
    drawn: Sequence[Picture],
) -> str:
    loader = PackageLoader("blockwise.analysis.report", "template")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    assets = files("blockwise.analysis.report") / "template"
    bundle = Path(itables.__file__).parent / "html"
    seeds = {record.seed for record in records}
    return environment.get_template("report.html").render(
        tables={table.name: table for table in shown},
        pictures=drawn,
        facts={
            "records": len(records),
            "backbones": len({sweep.backbone for sweep in found}),
            "data sets": len({sweep.data for sweep in found}),
            "seeds": len(seeds),
        },
        settings=[(sweep.title, _settings(sweep)) for sweep in found],
        version=version("blockwise"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        css=(assets / "report.css").read_text(),
        script=(assets / "report.js").read_text(),
        tables_css=(bundle / "dt_bundle.css").read_text(),
        tables_script=b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
    )


def _settings(sweep: Sweep) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in sweep.settings.items() if k not in PER_CELL}))
