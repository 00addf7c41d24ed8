"""The workspace uses only metrics and config keys that runs have."""

import json
import re

from blockwise.analysis.summary import sweeps
from blockwise.study.run import run
from blockwise.tracking.callback import describe, final_metrics
from blockwise.tracking.dashboard import build_dashboard, dashboard_json


def test_everything_that_is_plotted_is_in_the_runs(small, console):
    records = run(small("block=all"), console)
    (sweep,) = sweeps(records)
    config = set(describe(records[1]))
    summary = set(final_metrics(records[1], sweep))
    text = dashboard_json(build_dashboard("e", "p"))
    spec = json.loads(text)["spec"]
    plotted = set(re.findall(r'"(?:config:)?([a-z_]+)\.value', text)) | set(re.findall(r"{config:([a-z_]+)}", text))
    assert {"block", "depth", "backbone", "quarter", "trainable"} <= plotted <= config
    metrics = set(re.findall(r'"(?:summary:|summary_metrics\.)?((?:test|val|train|gain)/[a-z0-9_]+)"', text))
    assert {"test/top1", "val/top1", "train/loss", "gain/head", "gain/full"} <= metrics <= summary
    titles = [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]]
    assert "Accuracy by block" in titles
