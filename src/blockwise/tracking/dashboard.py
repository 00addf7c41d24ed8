"""A Weights & Biases workspace that compares blocks, built in code."""

from __future__ import annotations

import json
from typing import Any

import wandb
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import BarPlot, Config, LinePlot, ScatterPlot, SummaryMetric

from blockwise.errors import InputError
from blockwise.tracking.wandb import check_online

NAME = "Which block?"
TEST = SummaryMetric("test/top1")
LEGEND = "${config:backbone} ${config:scope}"


def build_dashboard(entity: str, project: str) -> workspaces.Workspace:
    """Return a workspace over the runs of a project; `tracking.wandb` describes the runs."""
    sections: dict[str, list[Any]] = {
        "Accuracy by block": [
            _scatter("Test accuracy by block", Config("block"), TEST),
            _scatter("Test accuracy by depth: 0 at the pixels, 1 at the head", Config("depth"), TEST),
            _bars("Mean test accuracy of a backbone's cells", TEST, "backbone"),
        ],
        "Against the baselines": [
            _bars("Test accuracy of head, full and every block", TEST, "scope"),
            _scatter("Gain over head by block", Config("block"), SummaryMetric("gain/head")),
            _scatter("Gain over full by block", Config("block"), SummaryMetric("gain/full")),
        ],
        "Gain by quarter: 1 at the pixels, 4 at the head": [
            _bars("Gain over head", SummaryMetric("gain/head"), "quarter"),
            _bars("Gain over full", SummaryMetric("gain/full"), "quarter"),
        ],
        "Cost": [
            _scatter("Test accuracy against trainable parameters", Config("trainable"), TEST, log_x=True),
            _scatter("Test accuracy against seconds", SummaryMetric("seconds"), TEST, log_x=True),
        ],
        "Chosen on validation": [_scatter("Test against validation", SummaryMetric("val/top1"), TEST)],
        "Training": [
            LinePlot(title="Validation accuracy", x="epoch", y=["val/top1"]),
            LinePlot(title="Training loss", x="epoch", y=["train/loss"]),
            LinePlot(title="Validation loss", x="epoch", y=["val/loss"]),
        ],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[workspaces.Section(name=name, panels=list(shown), is_open=True) for name, shown in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            # no grouping: panels would show group means instead of blocks
            order=[expr.Ordering(expr.Config(name), ascending=True) for name in ("data", "backbone", "block")],
            pinned_columns=[f"config:{name}" for name in ("scope", "policy", "quarter", "lr", "seed", "trainable")],
        ),
    )


def dashboard_json(workspace: workspaces.Workspace) -> str:
    """Return the JSON that `publish` would send."""
    spec = workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    named = {"entity": workspace.entity, "project": workspace.project, "name": workspace.name}
    return json.dumps({**named, "spec": spec}, indent=2)


def publish(workspace: workspaces.Workspace) -> str:
    """Publish a workspace at W&B and return its URL.

    Raises:
        InputError: There is no API key, or the server refuses the workspace.
    """
    check_online()
    try:
        return str(workspace.save().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise InputError(f"W&B refuses the workspace ({' '.join(str(error).split())})") from error


def _scatter(title: str, x: Any, y: Any, **options: Any) -> ScatterPlot:
    return ScatterPlot(title=title, x=x, y=y, legend_template=LEGEND, **options)


def _bars(title: str, metric: Any, by: str) -> BarPlot:
    return BarPlot(title=title, metrics=[metric], groupby=Config(by), groupby_aggfunc="mean", orientation="v")
