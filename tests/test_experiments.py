"""Every committed experiment: its grid matches its description, and one small job of it runs."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import SMALL

from blockwise.config.compose import CONFIG_DIR, compose_config, options
from blockwise.search import Exhaustive, Halving
from blockwise.study.run import run

EXPERIMENTS = CONFIG_DIR.parent / "experiments"
ONE_RUN = "small_data"  # no grid
SLOW = ("caltech101", "flowers102", "tf_flowers", "seeds")
FILES = [*sorted((EXPERIMENTS / "paper").glob("*.yaml")), *sorted((CONFIG_DIR / "experiment").glob("*.yaml"))]
FILES = [path for path in FILES if path.stem != ONE_RUN]


def chosen(path: Path) -> list[str]:
    """Return the command-line arguments of an experiment."""
    if path.parent.name == "experiment":
        return [f"experiment={path.stem}"]
    return [f"hydra.searchpath=[file://{EXPERIMENTS}]", f"+paper={path.stem}"]


def axes(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]


def jobs():
    """All experiments with each of their partitions; one block per layer gives many cells."""
    for path in FILES:
        for partition in axes(path).get("partition", ["segment"]):
            slow = partition in ("layer", "window") or path.stem in SLOW
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(path, partition, marks=marks, id=f"{path.parent.name}/{path.stem}-{partition}")


@pytest.mark.parametrize(("path", "partition"), jobs())
def test_one_of_its_jobs_runs(path, partition, tmp_path, console):
    cfg = compose_config(chosen(path))
    assert len(cfg.optimizer.lr) > 1, "scopes are compared each at its own best rate"
    assert axes(path)["seed"]
    few = [f"partition={partition}", *(["partition.num_blocks=3"] if partition == "segment" else [])]
    tiny = ["data.train_per_class=4", "data.val_per_class=2", "data.test_per_class=2", "trainer.max_epochs=1"]
    scopes = re.sub(r"[\[\]' ]", "", str(axes(path)["block"]))  # a text, a list, or a list in one job
    own = [f"block=[{scopes}]", "optimizer.lr=[1e-3]", "seed=0", "scheduler.warmup=0"]
    own += ["policy.lp_ft.head_epochs=1", "trainer.max_epochs=2"] if "lp_ft" in cfg.policy else []
    places = [f"results_dir={tmp_path / 'results'}", f"cache.folder={tmp_path / 'cache'}"]
    records = run(compose_config([*chosen(path), *SMALL, *tiny, *few, *places, *own]), console)
    assert {"head", "full"} <= {record["cell"]["scope"] for record in records}
    assert {record.policy for record in records} == {"static", *cfg.policy}


@pytest.mark.slow
def test_few_images_are_all_used_by_folds_and_a_search(tmp_path, console):
    tiny = ["partition=segment", "partition.num_blocks=3", "data.folds=2", "trainer.max_epochs=3", "scheduler.warmup=0"]
    tiny += ["search.min_epochs=1"]
    places = [f"results_dir={tmp_path / 'results'}", f"cache.folder={tmp_path / 'cache'}"]
    own = [*SMALL, *tiny, *places, "optimizer.lr=[1e-3,1e-2]"]
    records = run(compose_config([f"experiment={ONE_RUN}", *own]), console)
    assert {record.status for record in records} == {"finished", "pruned"}
    assert {record.data.val for record in records} == {80}
    assert {record.cell.scope for record in records} == {"head", "0", "1", "2", "full"}


def test_searches_are_replayed_on_the_evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    for name in ("analysis.early", "collected", "edges", "rebuild", "scores", "sets", "sweeps", "watch"):
        importlib.import_module(f"experiments.evidence.{name}")
    evidence = importlib.import_module("experiments.evidence.analysis.search")
    for cells in evidence.read_evidence([EXPERIMENTS / "evidence" / "results" / "flowers36-6.npz"])[:1]:
        scopes = ["head", *cells.blocks, "full"]
        exhaustive = evidence.Replay(cells, Exhaustive(), scopes)
        assert exhaustive.chosen(cells.score) == cells.chosen
        assert exhaustive.cost(scopes) == pytest.approx(1)
        halving = evidence.Replay(cells, Halving(), scopes)
        assert halving.cost(scopes) < 0.5
        assert cells.scope[halving.chosen(cells.score)] in cells.blocks


def test_gains_by_block_are_those_of_the_cells_that_validation_chooses(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    blocks = importlib.import_module("experiments.evidence.analysis.blocks")
    (cells, *_) = blocks.read_evidence([EXPERIMENTS / "evidence" / "results" / "flowers36-6.npz"])
    assert blocks.over("head", *cells.blocks)(cells) == pytest.approx(
        100 * (cells.test[cells.chosen] - cells.test[cells.of("head")])
    )
    assert blocks.over("head", "head")(cells) == 0
    alone = cells.with_rates([0.0005])
    assert sorted(alone.scope) == sorted({*cells.scope})
    (full,) = cells.test[(cells.scope == "full") & (abs(cells.lr - 0.0005) < 1e-9)]
    assert blocks.accuracy("full")(alone) == 100 * full
    # a scope that diverged has no accuracy and no gain
    assert blocks.accuracy("full")(alone.with_rates([1.0])) is None


def test_sweeps_that_are_compared_have_the_same_number_of_epochs():
    found = {}
    for path in (EXPERIMENTS / "evidence" / "results").glob("*.npz"):
        with np.load(path) as arrays:
            epochs = {arrays[key].shape[1] for key in arrays if key.endswith("/history")}
        data, images, *_ = path.stem.split("-")
        found.setdefault((data, images), set()).update(epochs)
    assert ("digits", "40") in found
    assert all(len(epochs) == 1 for epochs in found.values()), found


def test_no_rule_beats_knowing_the_truth(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    luck = importlib.import_module("experiments.selection.luck")
    importlib.import_module("experiments.selection.folds")
    sweeps = luck.read([EXPERIMENTS / "evidence" / "results" / "flowers36-6.npz"])
    splits = [cells for cells in sweeps if cells.model == "mobilenet_v1"]
    found = luck.regrets_of(splits)
    assert {len(pairs) for pairs in found.values()} == {len(splits)}
    assert all(mean == 0 for _, mean in found["best in the mean"])
    assert all(mean >= 0 for name in found if name not in ("head alone", "full") for _, mean in found[name])
    # over its own splits, no single block is better than the one that is best in their mean
    best = sum(same for same, _ in found["best in the mean"])
    assert best <= min(sum(same for same, _ in found[name]) for name in ("always the last block", "a block at random"))


@pytest.mark.parametrize("name", ["caltech101", "flowers102"])
def test_the_papers_grid_is_fifteen_backbones_and_three_seeds(name):
    path = EXPERIMENTS / "paper" / f"{name}.yaml"
    grid = axes(path)
    assert len(set(grid["model"])) == 15
    assert set(grid["model"]) <= set(options("model"))
    assert grid["seed"] == [0, 1, 2]
    assert compose_config(chosen(path)).data.name == name


def test_the_preprints_grid_is_five_backbones_and_the_four_ways():
    grid = axes(EXPERIMENTS / "paper" / "tf_flowers.yaml")
    assert grid["model"] == ["vgg16", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "resnet50v2"]
    assert grid["partition"] == ["layer", "segment", "window"]
    assert "top3" in grid["block"]
