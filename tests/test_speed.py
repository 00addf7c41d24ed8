"""The benchmark: its contenders run and train the same parameters, and its table shows the measurements."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blockwise.backbone.load import load_backbone
from blockwise.study.study import Study

SPEED = Path(__file__).parents[1] / "experiments" / "speed"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))


@pytest.fixture
def photographs_of_noise(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(14):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{number}.png")
    return [
        "data=imagefolder",
        f"data.root={tmp_path / 'images'}",
        "data.image_size=32",
        "data.batch_size=4",
        "model=timm",
        "model.name=test_efficientnet",
        "model.pretrained=false",
        "partition.num_blocks=3",
        "trainer=cpu",
        "trainer.max_epochs=1",
        f"cache.folder={tmp_path / 'cache'}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("contender", ["plain", "tuned", "ours", "ours-fp32", "search", "full", "floor"])
def test_every_contender_runs(contender, photographs_of_noise):
    epochs = ["trainer.max_epochs=2"] if contender == "search" else []  # it stops cells after the first
    command = [sys.executable, str(SPEED / "contender.py"), contender, *photographs_of_noise, *epochs]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(ran.stdout.strip().splitlines()[-1])
    assert figures["seconds"] > 0
    assert figures["peak_memory_bytes"] > 1e8
    if contender in ("ours", "ours-fp32", "full"):
        assert 0 < figures["training_seconds"] < figures["seconds"]
        assert figures["steps"] == 5  # 18 images
    if contender == "floor":
        parts = [seconds for name, seconds in figures.items() if name.startswith("floor of")]
        assert len(parts) == 6  # the frozen stages and five cells
        assert figures["floor_step_seconds"] == pytest.approx(sum(parts))


@pytest.mark.slow
def test_what_is_timed_on_a_gpu_runs_elsewhere(tmp_path):
    options = ["--networks", "timm/test_resnet", "--batches", "4", "--size", "32", "--parts", "ours-4", "full", "plain"]
    command = [sys.executable, str(SPEED / "gpu.py"), *options, "--out", str(tmp_path), "partition.num_blocks=3"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["ours-4", "full", "plain"]
    assert all(row["step_ms"] > 0 for row in rows)


def test_peers_train_the_same_parameters(small, console):
    from contender import _trained
    from peers import FineTuning

    cfg = small("block=[all,0+2]")
    study = Study.from_config(cfg, console)
    for scope in study.scopes:
        network = load_backbone(cfg.model, image_size=32, seed=0).network
        options = {"num_features": study.staged.num_features, "num_classes": 10, "lr": 0.1, "weight_decay": 0.0}
        peer = FineTuning(network, _trained(study, scope), **options, fused=False)
        before = {name: tensor.clone() for name, tensor in peer.backbone.state_dict().items()}
        layers = [layer for block in scope.blocks for layer in study.staged.partition.layers_of(block)]
        expected = {name for layer in layers for name in layer.parameters}
        assert {name for name, p in peer.backbone.named_parameters() if p.requires_grad} == expected
        optimizer = peer.configure_optimizers()
        peer.train()
        torch.nn.functional.cross_entropy(peer(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        trained = tuple(f"{layer.name}." for layer in layers)
        changed = {name for name, t in peer.backbone.state_dict().items() if not torch.equal(t, before[name])}
        assert all(name in expected or name.startswith(trained) for name in changed)
        # some do not change, since timm initializes residual branches with zero
        assert {name for name, p in peer.backbone.named_parameters() if p.grad is not None} == expected
        assert bool(changed) == bool(expected)


def test_the_table_says_what_was_measured(tmp_path):
    from bench import COMMON, report

    def run(contender, seconds, **more):
        return {"model": "net", "contender": contender, "seconds": seconds, "peak_memory_bytes": 2e9, **more}

    runs = [
        run("plain", 90.0),
        run("plain", 110.0),
        run("ours", 10.0, training_seconds=8.0, steps=4),
        run("search", 5.0),
        run("floor", 5.0, floor_step_seconds=1.6),
        run("full", 4.0) | {"peak_memory_bytes": 1.6e9},
    ]
    report(runs, [*COMMON, "data.train_per_class=5", "trainer.max_epochs=3"], tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert "| net | plain Lightning, one fit per cell | 100 (90 to 110) | 10.0 x | 20.0 x | 2.00 GB |" in text
    assert "| net | blockwise, bfloat16 | 10 |  | 2.0 x | 2.00 GB |" in text
    assert "404 training" in text
    assert "1.25 of the floor" in text
    assert "1.25 times that" in text
    assert "3 epoch(s)" in text
    assert json.loads((tmp_path / "speed.json").read_text())["runs"] == runs
    assert (tmp_path / "speed.png").stat().st_size > 5000
