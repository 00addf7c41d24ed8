"""The tables of a report: numbers for files, and the same numbers as texts for readers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blockwise.analysis.claims import claims
from blockwise.analysis.frame import depth
from blockwise.analysis.statistics import (
    BASELINES,
    LEVEL,
    PairedTest,
    Ranks,
    comparisons,
    interval,
    paired_tests,
    policy_tests,
    quarter_shares,
)
from blockwise.analysis.summary import SELECTED, Row, Sweep, best_seed, by_policy
from blockwise.analysis.uncertainty import confidence, gain
from blockwise.io.names import file_name, markdown, printable, spreadsheet
from blockwise.results.record import STATIC, Record

# number of characters of a commit hash to show
COMMIT = 12
# characters to escape in LaTeX
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%_#{}$"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "Δ": r"$\Delta$",
        "±": r"$\pm$",
    }
)
P_BEST = " P(best): probability that the block is the best one of its sweep, in %, by the validation images."
MAY_BE_BEST = " May be best: with a probability of 90 %, one of these blocks is the best one."
INTERVAL = "± is half of the 95 % confidence interval over seeds (Student's t)"


@dataclass(frozen=True)
class ReportTable:
    """A table of the report.

    Attributes:
        name: Name of its files, without the suffix.
        title: Heading.
        note: Explanation for readers.
        values: Numbers, as fractions instead of percentages; columns that the page hides come last.
        texts: The visible columns as formatted texts, with the same rows.
    """

    name: str
    title: str
    note: str
    values: pd.DataFrame
    texts: pd.DataFrame

    def save(self, folder: Path) -> list[Path]:
        """Write the table as CSV (numbers), Markdown and LaTeX (texts), and return the paths."""
        paths = [folder / f"{self.name}.{suffix}" for suffix in ("csv", "md", "tex")]
        self.values.map(lambda value: spreadsheet(value) if isinstance(value, str) else value).to_csv(
            paths[0], index=False, encoding="utf-8"
        )
        shown = self.texts.rename(columns=markdown).map(markdown).to_markdown(index=False, disable_numparse=True)
        paths[1].write_text(f"{shown}\n", encoding="utf-8")
        escaped = self.texts.rename(columns=_latex).map(_latex)
        latex = escaped.to_latex(index=False, caption=_latex(self.title), label=f"tab:{self.name}")
        paths[2].write_text(latex, encoding="utf-8")
        return paths


def summary_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return one row per backbone: both baselines, the best block, its gains."""
    lines = []
    for sweep in sweeps:
        best, head, full = sweep.best, sweep.row("head"), sweep.row("full")
        lines.append(
            {
                **_names(sweep, sweeps),
                "seeds": len(sweep.seeds),
                **_accuracy("head", head),
                **_accuracy("full", full),
                **_accuracy("best block", best),
                "block": best and best.blocks[0],
                "quarter": best and best.records[0].cell.quarter,
                "Δ head": best and head and best.difference(head),
                "Δ full": best and full and best.difference(full),
                **_how_sure(sweep, best),
            }
        )
    note = (
        f"Top-1 test accuracy in %. The best block has the best validation {_selection(sweeps)}. Each scope is shown "
        f"at its best learning rate by validation. Δ: gain in points, over the seeds that both have. {INTERVAL}."
        f"{_explained(lines)}"
    )
    return _table("summary", "Best block and baselines", note, lines)


def _how_sure(sweep: Sweep, best: Row | None) -> dict[str, Any]:
    """Return how likely the best block is the best one, and the blocks that may be; nothing without predictions."""
    if best is None or (sure := confidence(sweep)) is None:
        return {}
    scopes = sorted(sure.scopes, key=int)
    return {"P(best)": sure.probability[best.scope], "may be best": " ".join(scopes)}


def _explained(lines: Sequence[dict[str, Any]]) -> str:
    """Explain the columns of `_how_sure` where they are."""
    columns = {column for line in lines for column in line}
    return (P_BEST if "P(best)" in columns else "") + (MAY_BE_BEST if "may be best" in columns else "")


def gains_table(sweeps: Sequence[Sweep]) -> ReportTable | None:
    """Return the gains of the best block over `head` and `full` on each data set; None without predictions."""
    lines = []
    for sweep in (sweep for sweep in sweeps if sweep.best is not None):
        best = sweep.best
        assert best is not None
        for name in BASELINES:
            baseline = sweep.row(name)
            if baseline is None or (found := gain(best, baseline)) is None:
                continue
            lines.append(
                {
                    **_names(sweep, sweeps),
                    "block": best.blocks[0],
                    "over": name,
                    "seeds": len(best.seeds & baseline.seeds),
                    "Δ": found.difference,
                    "Δ from": found.low,
                    "Δ to": found.high,
                    "sd, images": found.images,
                    "sd, seeds": found.seeds,
                    "p": found.p,
                }
            )
    note = (
        "Gain of the best block (by validation) on the same test images, in points, with its 95 % interval by paired "
        "bootstrap over images; with several seeds, it includes the variance over seeds. sd: standard deviation of the "
        "gain over other images, and over other seeds, in points. p: McNemar's exact test, not corrected for the "
        "number of lines; with several seeds, twice the median of their p-values."
    )
    return _table("gains", "Gains within each data set", note, lines) if lines else None


def scopes_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return one row per scope of each sweep."""
    lines = []
    for sweep in sweeps:
        head, full, sure = sweep.row("head"), sweep.row("full"), confidence(sweep)
        for row in (row for row in sweep.rows if row.records):
            cell = row.records[0].cell
            lines.append(
                {
                    **_names(sweep, sweeps),
                    "scope": row.scope,
                    "quarter": cell.quarter,
                    "layers": printable(f"{cell.first_layer} to {cell.last_layer}") if row.blocks else None,
                    "trainable": cell.trainable_parameters,
                    "lr": row.lr,
                    "seeds": len(row.seeds),
                    **_accuracy("val", row, "val"),
                    **_accuracy("test", row),
                    "Δ head": head and row.difference(head),
                    "Δ full": full and row.difference(full),
                    "seconds": float(sum(record.seconds for record in row.records) / len(row.records)),
                    **({"P(best)": sure.probability.get(row.scope)} if sure else {}),
                    "depth": depth(row.blocks[0], sweep.num_blocks) if row.scope.isdigit() else None,
                }
            )
    note = f"Accuracies in %, at the scope's best learning rate by validation. {INTERVAL}. Seconds: mean per cell."
    note += _explained(lines)
    return _table("scopes", "Every scope", note, lines, hidden=("depth",))


def quarters_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return how often a block of each quarter beats both baselines."""
    lines = []
    for policy, share in ((policy, s) for policy, group in by_policy(sweeps).items() for s in quarter_shares(group)):
        low, high = share.interval or (None, None)
        lines.append(
            {
                **_policy(policy, sweeps),
                "quarter": share.quarter,
                "pairs": share.pairs,
                "blocks": share.blocks,
                "beat both": share.wins,
                "share": share.wins / share.blocks if share.blocks else None,
                "from": low,
                "to": high,
            }
        )
    note = (
        "Share of blocks whose test accuracy is above both head only and full fine-tuning, in %, with its 95 % "
        "confidence interval by bootstrap over pairs of backbone and data set. With too few pairs there is no interval."
    )
    return _table("quarters", "How often a block beats both baselines", note, lines)


def tests_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return paired tests of blocks and baselines."""
    tests = [(p, test) for p, group in by_policy(sweeps).items() for test in paired_tests(group, comparisons(group))]
    lines = [
        {
            **_policy(policy, sweeps),
            **_test(test),
        }
        for policy, test in tests
    ]
    note = (
        "Wilcoxon's signed-rank test, two-sided, on mean test accuracies of each backbone and data set, with Holm's "
        "correction for the tests of a policy that have enough pairs. Effect: matched-pairs rank-biserial correlation, "
        "-1 to 1. Δ in points."
    )
    return _table("tests", "Paired tests across backbones and data sets", note, lines)


def ranks_table(ranks: Ranks) -> ReportTable:
    """Return mean ranks and the p-values of Nemenyi's test."""
    lines = [
        {
            "treatment": name,
            "mean rank": rank,
            **{f"p, {other}": ranks.nemenyi.loc[name, other] for other in ranks.nemenyi},
        }
        for name, rank in ranks.mean_ranks.sort_values().items()
    ]
    note = (
        f"Friedman's test over {ranks.pairs} pairs of backbone and data set that have all treatments: "
        f"p = {ranks.p:.2g}. Rank 1 is the highest accuracy; the p-values in the table are from Nemenyi's test."
    )
    return _table("ranks", "Ranks of blocks and baselines", note, lines)


def policies_table(sweeps: Sequence[Sweep]) -> ReportTable | None:
    """Return paired tests of each policy against the first one; None with one policy."""
    tests = policy_tests(sweeps)
    lines = [{"treatment": name, **_test(test)} for name, test in tests]
    note = (
        "Wilcoxon's signed-rank test, two-sided, on test accuracies of the same backbone, data set, partition and "
        f"settings under two policies, with Holm's correction for {len(tests)} tests. Δ in points."
    )
    return _table("policies", "Policies against each other", note, lines) if lines else None


def selection_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return the test accuracy of the block selected on validation and the highest one, by which nobody may select."""
    lines = []
    for sweep in (sweep for sweep in sweeps if sweep.best is not None):
        chosen, highest = sweep.best, max(sweep.single_blocks, key=lambda row: row.mean("test"))
        assert chosen is not None
        lines.append(
            {
                **_names(sweep, sweeps),
                "chosen": chosen.blocks[0],
                "tests at": chosen.mean("test"),
                "highest on test": highest.blocks[0],
                "its test": highest.mean("test"),
                "Δ": highest.mean("test") - chosen.mean("test"),
            }
        )
    note = "The block chosen by validation, and the block with the highest test accuracy; accuracies in %, Δ in points."
    return _table("selection", "What choosing on validation costs", note, lines)


def export_table(sweeps: Sequence[Sweep]) -> ReportTable | None:
    """Return the command that exports the best block of each sweep; None if there are no blocks."""
    lines = []
    for sweep in sweeps:
        if (best := sweep.best) is None:
            continue
        record = best_seed(best.records)
        if record.backbone.weights == "own":  # a command cannot build it
            continue
        model: Any = record.settings.get("model", {})
        of_timm = model.get("source", "timm") == "timm" and model.get("head", "linear") == "linear"
        command = f"blockwise export {shlex.quote(record.folder or 'results')} -o {_export_folder(sweep, sweeps)}"
        command += "" if of_timm else " --format onnx"
        lines.append({**_names(sweep, sweeps), "block": best.blocks[0], "command": command})
    note = (
        "Writes the best block's network for timm (as ONNX, if timm has no such network); --format for another format, "
        "--scope for another scope."
    )
    return _table("export", "Use the best block", note, lines) if lines else None


def _export_folder(sweep: Sweep, sweeps: Sequence[Sweep]) -> str:
    """Return a folder for the export of a sweep's best block; no two sweeps have the same."""
    alike = [other for other in sweeps if (other.backbone, other.data) == (sweep.backbone, sweep.data)]
    names = {"backbone": sweep.backbone, "data": sweep.data} if len(alike) == 1 else _names(sweep, sweeps)
    return file_name("-".join(map(str, names.values())))


def claims_table(sweeps: Sequence[Sweep]) -> ReportTable:
    """Return the paper's claims and their tests on the records."""
    lines = [
        {"claim": claim.statement, "verdict": claim.verdict, "evidence": claim.evidence, "statistic": claim.statistic}
        for claim in claims(sweeps)
    ]
    note = "Claims of Barakat & Huang (2023), tested at a significance level of 5 %."
    return _table("claims", "The paper's claims", note, lines)


def gaps_table(sweeps: Sequence[Sweep]) -> ReportTable | None:
    """Return the cells of the complete grid that are missing in the other tables; None if there are none."""
    lines = []
    for sweep in sweeps:
        seeds = set[int]().union(*(other.seeds for other in sweeps if other.data == sweep.data))
        for scope in ("head", *map(str, range(sweep.num_blocks)), "full"):
            reasons: dict[str, list[int]] = {}
            for seed in sorted(seeds):
                if (reason := _why_missing(sweep, scope, seed)) is not None:
                    reasons.setdefault(reason, []).append(seed)
            for reason, absent in reasons.items():
                lines.append(
                    {**_names(sweep, sweeps), "scope": scope, "seeds": " ".join(map(str, absent)), "why": reason}
                )
    note = "Cells of the complete grid that have no finished record or are set aside. No other table includes them."
    return _table("gaps", "What is missing", note, lines) if lines else None


def _why_missing(sweep: Sweep, scope: str, seed: int) -> str | None:
    row = sweep.row(scope)
    if row is not None and seed in row.seeds:
        return None
    of_scope = [record for record in sweep.records if record.cell.scope == scope]
    statuses = {record.status for record in of_scope if record.seed == seed}
    if not statuses:
        return "no record"
    if "finished" not in statuses:
        return f"stopped by search={sweep.search}" if "pruned" in statuses else "diverged"
    diverged = any(record.status == "diverged" for record in of_scope)
    return "set aside: another seed diverged" if diverged else "set aside: other seeds have another learning rate"


def provenance_table(records: Sequence[Record]) -> ReportTable:
    """Return the number of records per command, commit and package versions."""
    counted: dict[tuple[str, ...], int] = {}
    for record in records:
        origin = record.provenance
        commit = (origin.get("commit") or "not from a checkout")[:COMMIT]
        commit += " (changed)" if origin.get("dirty") else ""
        versions = ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())
        key = (printable(str(origin.get("command"))), printable(commit), printable(versions))
        counted[key] = counted.get(key, 0) + 1
    lines = [
        {"command": command, "records": number, "commit": commit, "versions": versions}
        for (command, commit, versions), number in counted.items()
    ]
    return _table(
        "provenance", "Commands", "Each command, the number of records it wrote, and the commit it ran.", lines
    )


def _test(test: PairedTest) -> dict[str, Any]:
    return {
        "first": test.first,
        "second": test.second,
        "pairs": test.pairs,
        "Δ median": test.median,
        "effect": test.effect,
        "p": test.p,
        "p (Holm)": test.p_holm,
        "verdict": _verdict(test),
    }


def _selection(sweeps: Sequence[Sweep]) -> str:
    return ", or ".join(sorted({SELECTED[sweep.select_by] for sweep in sweeps})) or SELECTED["top1"]


def _policy(policy: str, sweeps: Sequence[Sweep]) -> dict[str, str]:
    """Return the column of the policy; none if all sweeps are static."""
    return {} if all(sweep.policy == STATIC for sweep in sweeps) else {"policy": policy}


def _names(sweep: Sweep, sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Return the columns that name a sweep, with the hash of its settings if names alone are not unique."""
    names = {"data": sweep.data, "backbone": sweep.backbone, "partition": sweep.partition}
    names.update(_policy(sweep.policy, sweeps))
    counted = Counter(other.title for other in sweeps)
    return names if max(counted.values()) == 1 else {**names, "settings": sweep.key}


def _accuracy(name: str, row: Row | None, split: str = "test") -> dict[str, Any]:
    """Return the columns of a mean accuracy and of the ends of its confidence interval."""
    if row is None:
        return {name: None, f"{name} low": None, f"{name} high": None}
    low, high = interval([record.score(split) for record in row.records]) or (None, None)
    return {name: row.mean(split), f"{name} low": low, f"{name} high": high}


def _verdict(test: PairedTest) -> str:
    if test.p_holm is None:
        return f"not enough data: {test.needed} pairs are needed"
    if test.significant:
        return f"{test.first} is higher"
    return f"{test.second} is higher" if test.p_holm < LEVEL else "no difference shown"


def _table(
    name: str, title: str, note: str, lines: Sequence[dict[str, Any]], hidden: Sequence[str] = ()
) -> ReportTable:
    if not lines:
        return ReportTable(name, title, note, pd.DataFrame(), pd.DataFrame())
    values = pd.DataFrame(lines).convert_dtypes()
    bounds = [column for column in values if column.endswith((" low", " high"))]
    shown = [column for column in values if column not in bounds and column not in hidden]
    texts = pd.DataFrame(
        [{column: _text(column, line.get(column), line.get(f"{column} high")) for column in shown} for line in lines],
        columns=shown,
    )
    return ReportTable(name, title, note, values[[*shown, *bounds, *hidden]], texts)


# columns that are fractions in files and percentages in texts
ACCURACIES = {*BASELINES, "best block", "val", "test", "tests at", "its test"}
SHARES = {"share", "from", "to", "P(best)"}


def _text(column: str, value: Any, high: float | None) -> str:
    if value is None or value != value:  # nan
        return ""
    if column in ACCURACIES:
        return f"{100 * value:.1f}" + (f" ± {100 * (high - value):.1f}" if high is not None else "")
    if column.startswith("sd, "):
        return f"{100 * value:.1f}"
    if column in SHARES:
        return f"{100 * value:.0f}"
    if column.startswith("Δ"):
        return f"{round(100 * value, 1) + 0.0:+.1f}"  # no -0.0
    if column == "trainable":
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _latex(text: str) -> str:
    return text.translate(LATEX)
