"""A run that is stopped at any point and started again writes the same results as an uninterrupted run."""

import json
import signal
from pathlib import Path

import pytest
import torch

from blockwise.errors import Interrupted
from blockwise.study.run import run
from blockwise.training.cells import Cell
from blockwise.training.checkpoints import Checkpoints
from blockwise.training.module import BlockwiseModule
from blockwise.training.scopes import Scope, parse_scopes

BLOCKS = "block=[head,0,2,full]"
STEPS = 2 * (4 + 2)  # two epochs of 50 images to train and 30 to validate, 16 at a time
OWN_TO_A_RUN = {"seconds", "peak_memory_bytes", "provenance"}


def results(folder: Path) -> dict[str, list]:
    """Return the stored results of each cell, without the fields that differ between any two runs."""
    found = {}
    for path in sorted(Path(folder).rglob("record.json")):
        record = {k: v for k, v in json.loads(path.read_text()).items() if k not in OWN_TO_A_RUN}
        files = [(path.parent / name).read_bytes() for name in ("history.csv", "weights.safetensors")]
        found[str(path.relative_to(folder))] = [record, *files]
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Results of uninterrupted runs, by their overrides."""
    known = {}

    def get(small, console, *overrides):
        if overrides not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            run(small(*overrides, f"results_dir={folder}"), console)
            known[overrides] = results(folder)
        return known[overrides]

    return get


# of the training and validation steps of two epochs: one of each kind; all with the slow tests
OFTEN = {6, 8}


@pytest.mark.parametrize(
    "step", [step if step in OFTEN else pytest.param(step, marks=pytest.mark.slow) for step in range(1, STEPS + 1)]
)
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(step, small, console, stop_at, unbroken, monkeypatch):
    expected = unbroken(small, console, BLOCKS)
    stop_at(step)
    cfg = small(BLOCKS)
    with pytest.raises(Interrupted) as interrupted:
        run(cfg, console)
    assert interrupted.value.signal == signal.SIGTERM
    assert not results(cfg.results_dir)
    monkeypatch.undo()
    run(cfg, console)
    assert results(cfg.results_dir) == expected
    assert not list(Path(cfg.results_dir).rglob("*.ckpt"))
    assert "resuming from the checkpoint" in console.export_text()


@pytest.fixture
def resumed(small, console, stop_at, monkeypatch):
    """Stop a run at a step, give the same command again, and return its results."""

    def get(step, *overrides):
        stop_at(step)
        with pytest.raises(Interrupted):
            run(cfg := small(*overrides), console)
        monkeypatch.undo()
        run(cfg, console)
        return results(cfg.results_dir)

    return get


@pytest.mark.parametrize("step", [3, 6])
def test_worker_processes_go_on_with_the_right_epoch(small, console, unbroken, resumed, step):
    overrides = ("block=head", "trainer.max_epochs=3", "data.num_workers=1")
    expected = unbroken(small, console, *overrides)
    assert resumed(step, *overrides) == expected


@pytest.mark.parametrize("step", [8, pytest.param(2, marks=pytest.mark.slow)])
def test_what_trains_after_a_resumed_fit_begins_with_its_first_batch(small, console, unbroken, resumed, step):
    overrides = ("block=[0,1,top2]", "data.augment=none")
    expected = unbroken(small, console, *overrides)
    assert resumed(step, *overrides) == expected


def test_names_in_checkpoints_tell_rates_and_best_blocks_apart():
    cells = [Cell(Scope("top2", blocks, 2), 0.001) for blocks in ((0, 1), (0, 2))]
    cells += [Cell(Scope("head", ()), rate) for rate in (0.001, 0.0010000001)]
    assert len({cell.saved_key for cell in cells}) == 4
    assert cells[2].key == "head@0.001"


@pytest.mark.slow
def test_stopped_again_and_again(small, console, stop_at, unbroken, monkeypatch):
    overrides = (BLOCKS, "early_stopping.patience=1", "trainer.max_epochs=4", "optimizer=sgd", "data.num_workers=1")
    expected = unbroken(small, console, *overrides)
    cfg = small(*overrides)
    for step in (3, 4, 2, 3):
        stop_at(step, signal.SIGINT)
        with pytest.raises(Interrupted):
            run(cfg, console)
        monkeypatch.undo()
    run(cfg, console)
    assert results(cfg.results_dir) == expected


@pytest.mark.slow
def test_some_of_the_cells_go_on_alone(small, console, stop_at, unbroken, monkeypatch):
    expected = unbroken(small, console, BLOCKS)
    stop_at(9)
    with pytest.raises(Interrupted):
        run(small(BLOCKS), console)
    monkeypatch.undo()
    cfg = small("block=[2,head]")
    run(cfg, console)
    assert "resuming from the checkpoint" in console.export_text()
    found = results(cfg.results_dir)
    assert len(found) == 2
    assert found.items() <= expected.items()
    assert list(Path(cfg.results_dir).rglob("*.ckpt")), "two of its cells are not recorded yet"
    run(small("block=[0,full]"), console)
    assert results(cfg.results_dir) == expected
    assert not list(Path(cfg.results_dir).rglob("*.ckpt"))


def test_saved_while_training_it_survives_what_cannot_be_caught(small, console, unbroken, monkeypatch):
    expected = unbroken(small, console, BLOCKS)
    cfg = small(BLOCKS, "checkpoint.every_minutes=0")
    with monkeypatch.context() as patch:
        patch.setattr("blockwise.training.module.BlockwiseModule.on_test_start", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(cfg, console)
    with monkeypatch.context() as patch:
        patch.setattr(BlockwiseModule, "training_step", lambda *_: pytest.fail("trained again"))
        run(cfg, console)
    assert results(cfg.results_dir) == expected


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    cells = [Cell(scope, 1e-3) for scope in parse_scopes(["head", "1"], 3, "stub")]
    checkpoints = Checkpoints(tmp_path)
    keys = {cell.key: {} for cell in cells}
    torch.save({"cells": keys, "global_step": 3}, tmp_path / "a.ckpt")
    torch.save({"cells": {**keys, "full@0.001": {}}, "global_step": 7}, tmp_path / "b.ckpt")
    torch.save({"cells": {"head@0.001": {}}, "global_step": 9}, tmp_path / "c.ckpt")
    whole = (tmp_path / "b.ckpt").read_bytes()
    (tmp_path / "d.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "e.ckpt").write_bytes(b"")
    assert checkpoints.find(cells) == tmp_path / "b.ckpt"
    checkpoints.drop(set(keys))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["b.ckpt", "d.ckpt", "e.ckpt"]


def test_handlers_of_signals_are_put_back(small, console):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(small("block=head"), console)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
