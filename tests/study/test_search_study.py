"""Searches in training: survivors are those of an exhaustive sweep, and nothing takes a stopped cell for finished."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, quick_config
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from blockwise import load_backbone, make_partition, read_records, train_scopes
from blockwise.errors import InputError, Interrupted
from blockwise.results import ResultStore
from blockwise.results import read_records as records_of
from blockwise.search import Exhaustive, FirstEpoch, Greedy, Halving, Racing, Ranked, TopDown
from blockwise.study.run import run
from blockwise.study.searching import expected_share
from blockwise.study.study import Study
from blockwise.training.module import BlockwiseModule

SWEEP = ["partition.num_blocks=4", "trainer.max_epochs=5", "optimizer.lr=[0.001,0.01]", "data.val_per_class=4"]


def cells(folder):
    """Return status, metrics, epochs, history and weights of each cell by scope and rate."""
    found = {}
    for path in sorted(Path(folder).rglob("record.json")):
        record = json.loads(path.read_text())
        weights = path.parent / "weights.safetensors"
        same = {name: record[name] for name in ("status", "settings", "metrics", "best_epoch", "epochs", "cell")}
        history = (path.parent / "history.csv").read_text()
        key = record["cell"]["scope"], record["settings"]["lr"]
        found[key] = same, history, load_file(weights) if weights.exists() else None, record["provenance"]
    return found


def assert_same(one, other):
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(tensor, other[2][name]) for name, tensor in one[2].items())


@pytest.fixture(scope="module")
def exhaustive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exhaustive")
    run(quick_config([*SMALL, *SWEEP, f"results_dir={folder}"]), Console(quiet=True))
    return cells(folder)


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halved")
    run(quick_config([*SMALL, *SWEEP, "search=halving", f"results_dir={folder}"]), Console(quiet=True))
    return folder


def test_survivors_are_those_of_an_exhaustive_sweep(exhaustive, halved):
    found = cells(halved)
    assert found.keys() == exhaustive.keys()
    survivors = {key for key, cell in found.items() if cell[0]["status"] == "finished"}
    assert {"head", "full"} < {scope for scope, _ in survivors}
    assert 1 <= sum(scope.isdigit() for scope, _ in survivors) < 4
    for key in survivors:
        assert_same(found[key], exhaustive[key])
    for key in found.keys() - survivors:
        cell, history, weights, origin = found[key]
        assert cell["status"] == "pruned"
        assert weights is None
        assert cell["metrics"] == dict.fromkeys(("train", "val", "test"))
        assert cell["epochs"] in (1, 2, 4)
        # until then it trained as in the exhaustive sweep
        assert exhaustive[key][1].startswith(history)
        assert origin["search"]["name"] == "halving"
        assert origin["search"]["pruned"] == len(found) - len(survivors)
        assert origin["search"]["seconds"] > 0


@pytest.mark.slow
def test_the_same_search_again_trains_nothing_and_an_exhaustive_one_trains_the_rest(
    exhaustive, halved, monkeypatch, tmp_path
):
    trained = []
    together = Study._train_together
    monkeypatch.setattr(Study, "_train_together", lambda self, cells: (trained.append(cells), together(self, cells)))
    options = [*SMALL, *SWEEP, f"results_dir={shutil.copytree(halved, tmp_path / 'halved')}"]
    run(quick_config([*options, "search=halving"]), Console(quiet=True))
    assert not trained
    before = cells(tmp_path)
    run(quick_config([*options, "search=halving", "search.factor=3", "block=[0,1]"]), Console(quiet=True))
    # one was stopped by another search: all that compete begin again, and what was finished stays so
    assert {cell.scope.name for cell in trained[0]} == {"0", "1"}
    finished = {key for key, cell in before.items() if cell[0]["status"] == "finished"}
    assert finished <= {key for key, cell in cells(tmp_path).items() if cell[0]["status"] == "finished"}
    # the same search among fewer cells is another competition
    trained.clear()
    run(quick_config([*options, "search=halving", "block=[0,1]"]), Console(quiet=True))
    assert {cell.scope.name for cell in trained[0]} == {"0", "1"}
    trained.clear()
    run(quick_config(options), Console(quiet=True))
    assert trained
    for key, cell in cells(tmp_path).items():
        assert_same(cell, exhaustive[key])


@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), 12])
def test_a_search_resumes_in_the_middle_of_a_rung(exhaustive, tmp_path, monkeypatch, stop_at, step):
    cfg = quick_config([*SMALL, *SWEEP, "search=halving", "search.min_epochs=1", f"results_dir={tmp_path}"])
    stop_at(step)
    with pytest.raises(Interrupted):
        run(cfg, Console(quiet=True))
    monkeypatch.undo()
    run(cfg, Console(quiet=True))
    again = tmp_path / "again"
    run(quick_config([*SMALL, *SWEEP, "search=halving", f"results_dir={again}"]), Console(quiet=True))
    resumed, whole = cells(tmp_path), cells(again)
    assert {key: cell[:2] for key, cell in resumed.items()} == {key: cell[:2] for key, cell in whole.items()}


@pytest.mark.parametrize("first", ["halving", "exhaustive"])
def test_another_search_does_not_go_on_from_its_checkpoint(exhaustive, halved, tmp_path, monkeypatch, stop_at, first):
    second = {"halving": "exhaustive", "exhaustive": "halving"}[first]
    options = [*SMALL, *SWEEP, f"results_dir={tmp_path}"]
    stop_at(12)
    with pytest.raises(Interrupted):
        run(quick_config([*options, f"search={first}"]), Console(quiet=True))
    monkeypatch.undo()
    assert list(tmp_path.rglob("*.ckpt"))
    run(quick_config([*options, f"search={second}"]), Console(quiet=True))
    found, expected = cells(tmp_path), exhaustive if second == "exhaustive" else cells(halved)
    assert {key: cell[:2] for key, cell in found.items()} == {key: cell[:2] for key, cell in expected.items()}
    # what an exhaustive sweep has finished, no search will train
    assert bool(list(tmp_path.rglob("*.ckpt"))) == (first == "exhaustive")


SLOW = [pytest.param(written, marks=pytest.mark.slow) for written in (1, 7)]


@pytest.mark.parametrize("written", [3, *SLOW])
def test_a_full_disk_while_records_are_written_changes_nothing(halved, tmp_path, monkeypatch, console, written):
    cfg = quick_config([*SMALL, *SWEEP, "search=halving", f"results_dir={tmp_path}", "checkpoint.every_minutes=0"])
    save, left = ResultStore.save, iter([None] * written)

    def until_full(*arguments):
        next(left)  # a StopIteration ends the run
        return save(*arguments)

    monkeypatch.setattr(ResultStore, "save", until_full)
    with pytest.raises(StopIteration):
        run(cfg, Console(quiet=True))
    monkeypatch.undo()
    run(cfg, console)
    assert "resuming from the checkpoint" in console.export_text()
    found, expected = cells(tmp_path), cells(halved)
    assert {key: cell[:2] for key, cell in found.items()} == {key: cell[:2] for key, cell in expected.items()}


def test_a_search_has_the_same_outcome_beside_finished_records(exhaustive, halved, tmp_path):
    options = [*SMALL, *SWEEP, f"results_dir={tmp_path}"]
    run(quick_config([*options, "block=0"]), Console(quiet=True))
    run(quick_config([*options, "search=halving"]), Console(quiet=True))
    for key, cell in cells(tmp_path).items():
        assert cell[:2] == (exhaustive[key] if key[0] == "0" else cells(halved)[key])[:2]


def test_tables_and_frames_tell_pruned_from_finished(halved, console):
    records = records_of(halved)
    pruned = {r.cell.scope for r in records} - {r.cell.scope for r in records if r.status == "finished"}
    study = Study.from_config(quick_config([*SMALL, *SWEEP, "search=halving", f"results_dir={halved}"]), console)
    sweep = study.sweep()
    assert not pruned & {row.scope for row in sweep.single_blocks}
    assert all(sweep.row(scope) is None for scope in pruned)
    study.report()
    text = console.export_text()
    assert f"search=halving stopped {sum(r.status == 'pruned' for r in records)} of {len(records)} cells" in text
    frame = read_records(halved)
    assert frame.loc[frame.status == "pruned", ["val_top1", "test_top1", "p_best"]].isna().all(axis=None)


def test_topdown_and_greedy_train_in_rounds(small, console, monkeypatch):
    trained = []
    together = Study._train_together

    def watched(self, cells):
        trained.append([cell.scope.name for cell in cells])
        together(self, cells)

    monkeypatch.setattr(Study, "_train_together", watched)
    run(small("search=topdown", "search.patience=3"), console)
    assert trained == [["head", "full", "2"], ["1"], ["0"]]
    trained.clear()
    run(small("search=greedy", "search.most=2"), console)
    (pairs,) = trained  # all single blocks are recorded
    best = min(set.intersection(*(set(pair.split("+")) for pair in pairs)))
    assert len(pairs) == 2
    assert all(best in pair.split("+") for pair in pairs)


@pytest.mark.slow
def test_policies_search_side_by_side(small, console, monkeypatch):
    trained = []
    together = Study._train_together
    monkeypatch.setattr(
        Study,
        "_train_together",
        lambda self, cells: (trained.append({(c.scope.name, c.policy) for c in cells}), together(self, cells)),
    )
    policies = ["policy=[static,lp_ft]", "policy.lp_ft.head_epochs=1"]
    run(small("search=topdown", "search.patience=3", "block=[0,1]", *policies), console)
    assert trained == [{(scope, policy) for policy in ("static", "lp_ft")} for scope in ("1", "0")]


@pytest.mark.slow
def test_then_trains_a_joint_scope_at_the_end(small, console):
    run(small("search=first_epoch", "search.keep=2", "search.then=top2"), console)
    records = {r.cell.scope: r for r in records_of(small().results_dir)}
    survivors = {int(s) for s, r in records.items() if s.isdigit() and r.status == "finished"}
    assert set(records["top2"].cell.blocks) == survivors


@pytest.mark.parametrize(
    ("search", "share"),
    [
        (Exhaustive(), 1.0),
        (Racing(), 1.0),
        # one rate of two after the first epoch, then for 4 blocks of equal cost: 2 of them, 1 from the fifth epoch on
        (Halving(), (2 + 1 + 2 * 0.5 + 4 * 0.25) / 16),
        (FirstEpoch(keep=1), (2 * 4 + 7) / (2 * 4 * 8)),
        (Ranked("probe", keep=1), 0.25),
        (TopDown(patience=4), 1.0),
        # all single blocks, then 3 pairs of twice their cost
        (Greedy(most=2), 1 + 3 * 2 / 4),
    ],
)
def test_the_expected_share_is_that_of_a_hand_count(search, share):
    scopes = ["0", "1", "2", "3"]
    found = expected_share(search, scopes, [0.1, 0.2], 8, lambda scope: 10 * len(scope.split("+")))
    assert found == pytest.approx(share)


def test_a_plan_tells_what_a_search_is_expected_to_cost(small, console):
    Study.from_config(small("search=ranked", "search.keep=1", "plan=true"), console).plan()
    assert "search=ranked: about" in console.export_text()


def test_a_search_that_keeps_every_block_says_so(small, console):
    Study.from_config(small("search=first_epoch", "search.keep=2", "block=[0,1]", "trainer.max_epochs=2"), console)
    assert "search.keep=2 leaves out none of the 2 blocks" in console.export_text()


class Confused(Halving):
    def stop(self, candidates, epoch, max_epochs):
        return {"99@1"}


class Unfinished:
    def rounds(self, scopes, trials):
        yield scopes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["search=halving", "search.factor=1"], "search.factor=1 must be a number of at least 2"),
        (
            ["search=halving", "search.min_epochs=2"],
            "search.min_epochs=2 stops cells after epoch 2, but trainer.max_epochs=2",
        ),
        (
            ["search=racing", "search.min_epochs=9"],
            "search.min_epochs=9 stops cells after epoch 9, but trainer.max_epochs=2",
        ),
        (["search=first_epoch", "trainer.max_epochs=1"], "search=first_epoch stops cells after epoch 1, but"),
        (
            ["search=halving", "policy=lp_ft", "policy.lp_ft.head_epochs=1"],
            "search.min_epochs=1 stops cells after epoch 1, but until epoch 1 policy=lp_ft trains the head alone",
        ),
        (["search=first_epoch", "policy=[static,gradual]"], "choose search=halving search.min_epochs=2 or more"),
        (["search.then=top2", "sweeper.cells_per_job=2"], "but search.then=top2 needs all of its blocks"),
        (["search=halving", "search.kep=2"], "there is no setting search.kep"),
        (["search=luck"], "search=luck is unknown: choose from exhaustive, first_epoch, greedy, halving"),
        (
            ["search=topdown", "search.patience=1", "search.then=top3"],
            "block=top3 needs 3 blocks that train to their end, but",
        ),
        (["search=halving", "search.then=top3"], "block=top3 needs 3 blocks that train to their end: set search.keep"),
        (["search=halving", "search.then=top9"], "block=top9"),
        (["search=halving", "search.then=7"], "search.then=7 does not choose among trained blocks: choose top2"),
        (["search=halving", "sweeper.cells_per_job=2"], "sweeper.cells_per_job=2 divides a sweep between jobs"),
        (["search._target_=blockwise.search.Nothing"], "search: there is no blockwise.search.Nothing"),
        (["search._target_=collections.OrderedDict"], "is not a search: it needs the methods rounds and stop"),
    ],
)
def test_wrong_settings_are_named_before_training(options, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr(BlockwiseModule, "training_step", lambda *_: pytest.fail("it trains"))
    with pytest.raises(InputError) as error:
        run(quick_config([*SMALL, "partition.num_blocks=4", f"results_dir={tmp_path}", *options]))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def loaders():
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    return dict.fromkeys(("train", "val", "test"), loader)


@pytest.mark.slow
def test_the_api_takes_searches(loaders, tmp_path):
    backbone = load_backbone("timm:test_resnet", pretrained=False, image_size=32)
    partition = make_partition(backbone, num_blocks=3)
    options = {"classes": ["cat", "dog"], "results_dir": tmp_path, "accelerator": "cpu", "quiet": True}

    def train(search, max_epochs=3):
        return train_scopes(
            backbone,
            partition,
            "all",
            loaders,
            max_epochs=max_epochs,
            lr=[1e-3, 1e-2],
            search=search,
            **options,
        )

    assert {record.status for record in train(Halving(factor=3))} == {"finished", "pruned"}
    assert {record.status for record in train("exhaustive")} == {"finished"}
    for wrong, sentence in (
        ("luck", "search=luck is unknown: choose exhaustive"),
        (Halving, "is not a search"),
        (Unfinished(), "it needs the methods rounds and stop"),
        (Confused(), "the search stops '99@1', but its candidates are"),
    ):
        with pytest.raises(InputError, match=sentence):
            train(wrong, max_epochs=4)


class BatchSizeBakedIn(torch.nn.Module):
    """Cannot be cut: a trace is valid for one batch size only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(x).mean((2, 3)) * float(len(x))


def test_a_network_that_cannot_be_cut_has_no_race(loaders, tmp_path):
    backbone = load_backbone(BatchSizeBakedIn(), name="baked", image_size=32)
    partition = make_partition(backbone, "layer")
    options = {"classes": ["cat", "dog"], "max_epochs": 2, "results_dir": tmp_path, "accelerator": "cpu", "quiet": True}
    with pytest.raises(InputError, match="compares cells that train side by side, but those of baked"):
        train_scopes(backbone, partition, "all", loaders, search="halving", **options)
    records = train_scopes(backbone, partition, ["head", 0], loaders, search="topdown", **options)
    assert [record.cell.scope for record in records] == ["head", "0"]
