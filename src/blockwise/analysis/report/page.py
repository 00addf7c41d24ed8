"""Write a report of records: a self-contained HTML page, and its tables and figures as files."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from io import StringIO
from itertools import groupby
from pathlib import Path

import itables
import matplotlib as mpl
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from blockwise.analysis import figures, tables
from blockwise.analysis.report.classes import confusion_matrix, gains_by_class, history, predictions
from blockwise.analysis.statistics import accuracy_matrix, ranks, treatment
from blockwise.analysis.summary import Sweep, by_policy, sweeps
from blockwise.errors import InputError
from blockwise.io.names import file_name
from blockwise.results.record import STATIC, Record
from blockwise.results.store import PER_CELL, read_history

PAGE = "index.html"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: Name of its files, without the suffix.
        title: Heading.
        note: Description, also for readers who cannot see the figure.
        figure: The figure itself.
    """

    name: str
    title: str
    note: str
    figure: Figure

    @cached_property
    def drawing(self) -> str:
        """The figure as SVG with a transparent background."""
        text = StringIO()
        with mpl.rc_context({"svg.hashsalt": self.name}):  # the same figure gives the same file
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        self.figure.set_layout_engine("none")  # keep this layout for other formats instead of computing it again
        return text.getvalue()

    def save(self, folder: Path) -> list[Path]:
        """Write the figure as SVG and PNG, and return the paths."""
        paths = [folder / f"{self.name}.{suffix}" for suffix in ("svg", "png")]
        paths[0].write_text(self.drawing, encoding="utf-8")
        self.figure.savefig(paths[1], dpi=150)
        return paths

    @property
    def svg(self) -> str:
        """The drawing for the page: it shrinks to the available width, and black becomes the text colour."""
        drawing = self.drawing[self.drawing.index("<svg") :]
        drawing = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 role="img" style="max-width: \2"', drawing, count=1)
        drawing = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawing, count=1)
        return re.sub(r"#000000|(?<=stroke: )black|(?<=fill: )black", "currentColor", drawing)


def write_report(records: Sequence[Record], folder: Path) -> Path:
    """Write `index.html`, `tables/` and `figures/` and return the path of the page.

    Raises:
        InputError: The folder cannot be written to.
    """
    recorded = sweeps(records)
    report_tables = list(_tables(recorded, records))
    with mpl.rc_context({"text.parse_math": False}):  # names may contain a dollar sign
        pictures = _with_file_names(_pictures(recorded))
    try:
        parts: Sequence[tables.ReportTable | Picture]
        for name, parts in (("tables", report_tables), ("figures", pictures)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for part in parts:
                part.save(folder / name)
        page = folder / PAGE
        page.write_text(_page(recorded, records, report_tables, pictures), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written to ({error.strerror})") from error
    return page


def _with_file_names(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures with names that can be names of files, each once."""
    named: dict[str, Picture] = {}
    for picture in pictures:
        name = file_name(picture.name)
        while name in named:
            name += "-"
        named[name] = replace(picture, name=name)
    return list(named.values())


def _tables(recorded: Sequence[Sweep], records: Sequence[Record]) -> Iterator[tables.ReportTable]:
    yield tables.claims_table(recorded)
    yield tables.summary_table(recorded)
    if (gains := tables.gains_table(recorded)) is not None:
        yield gains
    yield tables.quarters_table(recorded)
    yield tables.tests_table(recorded)
    if (policies := tables.policies_table(recorded)) is not None:
        yield policies
    if (ranked := ranks(accuracy_matrix(_static(recorded)))) is not None:
        yield tables.ranks_table(ranked)
    yield tables.selection_table(recorded)
    yield tables.scopes_table(recorded)
    if (exports := tables.export_table(recorded)) is not None:
        yield exports
    if (gaps := tables.gaps_table(recorded)) is not None:
        yield gaps
    yield tables.provenance_table(records)


def _static(recorded: Sequence[Sweep]) -> list[Sweep]:
    """Return the sweeps of the static policy, or of the only one there is."""
    groups = by_policy(recorded)
    return groups.get(STATIC) or next(iter(groups.values()), [])


def _pictures(recorded: Sequence[Sweep]) -> Iterator[Picture]:
    def by_place(sweep: Sweep) -> tuple[str, str, str]:
        return sweep.data, sweep.partition, "" if sweep.policy == STATIC else sweep.policy

    for (data, partition, policy), group in groupby(sorted(recorded, key=by_place), key=by_place):
        sweeps_of = [sweep for sweep in group if sweep.single_blocks]
        if sweeps_of:
            names = [data, partition, *([policy] if policy else [])]
            yield from _of_one_data_set(sweeps_of, ", ".join(names), "-".join(names))
    with_blocks = [sweep for sweep in _static(recorded) if sweep.single_blocks]
    if any(sweep.row(name) for sweep in with_blocks for name in figures.BASELINES):
        yield Picture(
            "gain-by-quarter",
            "Gain by quarter",
            "Gain of the best block of each quarter (by validation) over both baselines. One dot per backbone and data "
            "set; boxes from the first to the third quartile.",
            figures.gain_by_quarter(with_blocks, treatment),
        )
    if (ranked := ranks(accuracy_matrix(_static(recorded)))) is not None:
        yield Picture(
            "critical-differences",
            "Critical differences",
            "Mean ranks; 1 is the highest accuracy. Bars join treatments that do not differ significantly in Nemenyi's "
            "test.",
            figures.critical_differences(ranked),
        )


def _of_one_data_set(recorded: Sequence[Sweep], title: str, name: str) -> Iterator[Picture]:
    yield Picture(
        f"accuracy-by-block-{name}",
        f"Accuracy by block: {title}",
        "Mean test accuracy of each block and of both baselines; bands show one standard deviation over seeds.",
        figures.accuracy_by_block(recorded),
    )
    if any(sweep.row("head") for sweep in recorded):
        yield Picture(
            f"depth-{name}",
            f"Gain by depth: {title}",
            "Test accuracy of each block minus that of head only, from the pixels (0) to the head (1). Stars mark the "
            "blocks chosen by validation.",
            figures.depth_map(recorded),
        )
    costs: tuple[figures.Cost, ...] = ("trainable", "seconds")
    for cost in costs:
        yield Picture(
            f"{cost}-{name}",
            f"Accuracy against {figures.COSTS[cost]}: {title}",
            "Every scope of every backbone, mean over seeds.",
            figures.accuracy_against_cost(recorded, cost),
        )
    yield Picture(
        f"selection-{name}",
        f"Chosen by validation, highest on test: {title}",
        "The distance between the two is the cost of choosing on validation instead of on test.",
        figures.selection_cost(recorded),
    )
    if (curves := figures.training_curves(recorded, history)) is not None:
        yield Picture(f"curves-{name}", f"Training: {title}", "Validation accuracy by epoch, mean over seeds.", curves)
    if (course := figures.search_course(recorded, _accuracies)) is not None:
        note = (
            "Each cell's best validation accuracy so far, first seed; crosses mark the cells that the search stopped."
        )
        yield Picture(f"search-{name}", f"Search: {title}", note, course)
    yield from _of_the_best_cell(recorded, title, name)


def _accuracies(record: Record) -> list[float]:
    """Return the validation accuracy of each epoch."""
    return [] if record.folder is None else [epoch["val"]["top1"] for epoch in read_history(record.folder)]


def _of_the_best_cell(recorded: Sequence[Sweep], title: str, name: str) -> Iterator[Picture]:
    """Plot confusion matrix and gains per class for the block with the highest validation accuracy of all backbones."""
    sweep = max(recorded, key=lambda sweep: sweep.single_blocks[0].mean("val"))
    best, head = sweep.single_blocks[0], sweep.row("head")
    if (kept := predictions(best)) is None:
        return
    which = f"{sweep.backbone}, block {best.scope}"
    matrix = confusion_matrix(kept)
    part = "" if len(matrix) == kept["label"].nunique() else f" Only the {len(matrix)} classes with the most errors."
    yield Picture(
        f"confusion-{name}",
        f"Confusion matrix of the best cell: {which}, {title}",
        f"Each row shows the predictions for one true class, as fractions of its test images.{part}",
        figures.confusion(matrix),
    )
    if head is not None and (base := predictions(head)) is not None:
        yield Picture(
            f"class-gains-{name}",
            f"Gain by class: {which}, {title}",
            "Accuracy of each class with the block minus that with head only.",
            figures.class_gains(gains_by_class(kept, base)),
        )


def _page(
    recorded: Sequence[Sweep],
    records: Sequence[Record],
    report_tables: Sequence[tables.ReportTable],
    pictures: Sequence[Picture],
) -> str:
    loader = PackageLoader("blockwise.analysis.report", "template")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    assets = files("blockwise.analysis.report") / "template"
    bundle = Path(itables.__file__).parent / "html"
    seeds = {record.seed for record in records}
    return environment.get_template("report.html").render(
        tables={table.name: table for table in report_tables},
        pictures=pictures,
        facts={
            "records": len(records),
            "backbones": len({sweep.backbone for sweep in recorded}),
            "data sets": len({sweep.data for sweep in recorded}),
            "seeds": len(seeds),
        },
        settings=[(sweep.title, _settings(sweep)) for sweep in recorded],
        version=version("blockwise"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        css=(assets / "report.css").read_text(encoding="utf-8"),
        script=(assets / "report.js").read_text(encoding="utf-8"),
        tables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
        tables_script=b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
    )


def _settings(sweep: Sweep) -> str:
    shared = {key: value for key, value in sweep.settings.items() if key not in PER_CELL}
    return yaml.safe_dump(shared, sort_keys=False, allow_unicode=True)
