"""Plans of `plan=true` against actual runs."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blockwise.backbone.flops import cell_flops
from blockwise.backbone.stages import stage_backbone
from blockwise.partition import EvenPartitioner
from blockwise.study.plan import total
from blockwise.study.run import run
from blockwise.study.worker import FOLDER, PLAN
from blockwise.training.cells import CellNetwork
from blockwise.training.scopes import parse_scopes


def test_a_plan_trains_nothing_and_knows_what_is_recorded(small, console):
    run(small("block=[head,1]"), console)
    cfg = small("block=[all,top2]", "plan=true")
    before = sorted(Path(cfg.results_dir).rglob("*"))
    assert run(cfg, console) == []
    assert sorted(Path(cfg.results_dir).rglob("*")) == before
    text = console.export_text()
    assert "6 cells, 2 of them already recorded" in text
    assert " ".join(text.split()).count(" recorded ") >= 2
    run(small("block=[head,1]", "plan=true"), console)
    assert "Nothing left to train." in console.export_text()


def test_balanced_class_weights_need_no_images_in_a_plan(small, console):
    run(small("loss.class_weights=balanced", "plan=true"), console)
    assert "5 cells" in console.export_text()


def test_what_it_foretells_comes_true(small, console, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    run(small("block=all", "plan=true"), console)
    plan = json.loads((tmp_path / PLAN).read_text())
    cfg = small("block=all")
    records = run(cfg, console)
    weights = sum(path.stat().st_size for path in Path(cfg.results_dir).rglob("*.safetensors"))
    assert plan["disk_bytes"] == pytest.approx(weights, rel=0.05)
    lines = console.export_text().splitlines()
    for record in records:
        cell = record["cell"]
        assert [cell["scope"], f"{cell['trainable_parameters']:,}"] in [line.split()[:2] for line in lines]


def test_operations_are_those_that_torch_counts(stub, stub_layers):
    partition = EvenPartitioner(num_blocks=3)(stub_layers, stub)
    backbone = stage_backbone(stub, partition, torch.zeros(2, 3, 16, 16))
    for scope in parse_scopes("all", 3, "stub"):
        network = CellNetwork(backbone, scope, num_classes=5)
        images = torch.randn(1, 3, 16, 16)
        live = dict(backbone.onward(0, backbone.enter(images), {network.start}))[network.start]
        with FlopCounterMode(display=False) as counter:
            backbone.features(live) if not scope.blocks else network(backbone, live).sum().backward()
        head = 3 * (2 * 12 * 5)  # forward pass, input gradient, weight gradient
        counted = counter.get_total_flops() - (head if scope.blocks else 0)
        assert cell_flops(partition, scope.blocks) == counted


def test_several_jobs_have_a_sum(tmp_path):
    plan = {"cells": 3, "recorded": 1, "seconds": 90.0, "disk_bytes": 2e6, "memory_bytes": 3e9}
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        assert total(tmp_path) is None
        (tmp_path / str(number) / PLAN).write_text(json.dumps(plan))
    assert total(tmp_path) == (
        "2 jobs, 6 cells, 2 of them already recorded: 0:03:00 one after another, 4 MB of weights, "
        "3.0 GB of memory for the largest job"
    )
