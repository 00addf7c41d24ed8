"""Policies in training: what is frozen in an epoch stays as it is, alone equals among, and phases are paid for."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, quick_config
from safetensors.torch import load_file

from blockwise.errors import InputError, Interrupted
from blockwise.results import read_records
from blockwise.study.run import run
from blockwise.study.study import Study
from blockwise.training.module import BlockwiseModule

POLICIES = ["policy=[static,lp_ft,gradual,cyclic]", "policy.lp_ft.head_epochs=1", "trainer.max_epochs=3"]
SCOPES = "block=[head,1,0+2]"
# every epoch counts: the last is the best in most cells, and norms change
RECIPE = ["freeze.norm=train", "optimizer.lr=0.01", "select_by=loss"]


def results(folder):
    """Return record, history and weights of each cell by policy and scope."""
    kept = {}
    for path in sorted(Path(folder).rglob("record.json")):
        record = json.loads(path.read_text())
        key = record["settings"].get("policy", {}).get("name", "static"), record["cell"]["scope"]
        same = {name: record[name] for name in ("settings", "metrics", "best_epoch", "epochs", "cell")}
        kept[key] = same, (path.parent / "history.csv").read_text(), load_file(path.parent / "weights.safetensors")
    return kept


def assert_same(one, other):
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(tensor, other[2][name]) for name, tensor in one[2].items())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    run(quick_config([*SMALL, "partition.num_blocks=3", *RECIPE, *POLICIES, SCOPES, f"results_dir={folder}"]))
    return results(folder)


def test_a_list_of_policies_trains_side_by_side_and_head_once(together):
    policies = ("static", "lp_ft", "gradual", "cyclic")
    assert set(together) == {("static", "head"), *((p, scope) for p in policies for scope in ("1", "0+2"))}
    # `cyclic` trains a single block as `static` does, the others do not
    weights = {p: together[p, "1"][2]["head.weight"] for p in policies}
    assert torch.equal(weights["cyclic"], weights["static"])
    assert not torch.equal(weights["lp_ft"], weights["static"])
    assert torch.equal(weights["lp_ft"], weights["gradual"])
    assert len({tuple(together[p, "0+2"][2]["head.weight"].flatten().tolist()) for p in policies}) == 4


@pytest.mark.parametrize("policy", ["lp_ft", "gradual", "cyclic"])
def test_alone_equals_among(small, console, tmp_path, together, policy):
    options = [f"policy={policy}", "trainer.max_epochs=3", *RECIPE]
    run(small("block=0+2", *options, *(["policy.lp_ft.head_epochs=1"] if policy == "lp_ft" else [])), console)
    assert_same(results(small().results_dir)[policy, "0+2"], together[policy, "0+2"])


# three epochs of four training and two validation steps: in each phase, within an epoch and between two
@pytest.mark.parametrize(
    "step", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(9, marks=pytest.mark.slow), 10]
)
def test_resumed_in_any_phase_it_ends_as_if_it_had_not_been_stopped(
    small, console, together, monkeypatch, stop_at, step
):
    # some of the cells: in the same phases, they end as among all
    policies = ["policy=[lp_ft,cyclic]", "policy.lp_ft.head_epochs=1", "trainer.max_epochs=3"]
    cfg = small("block=0+2", *RECIPE, *policies)
    stop_at(step)
    with pytest.raises(Interrupted):
        run(cfg, console)
    monkeypatch.undo()
    run(cfg, console)
    assert "resuming from the checkpoint" in console.export_text()
    ended = results(cfg.results_dir)
    assert len(ended) == 2
    for key, cell in ended.items():
        assert_same(cell, together[key])


@pytest.mark.parametrize("policy", ["static", "lp_ft", "gradual", "cyclic"])
def test_what_is_frozen_in_an_epoch_is_bit_identical_after_it(small, console, monkeypatch, policy):
    """All tensors are compared epoch by epoch, norms included, with what the policy says."""
    options = ["policy.lp_ft.head_epochs=1"] if policy == "lp_ft" else []
    study = Study.from_config(
        small("block=from0", f"policy={policy}", "trainer.max_epochs=4", *RECIPE, *options), console
    )
    snapshots, starts = [], []
    step = BlockwiseModule.training_step

    def watched(self, batch, batch_idx):
        (network,) = self.networks
        if batch_idx == 0:
            snapshots.append(tensors(network))
        step(self, batch, batch_idx)
        if batch_idx == 0:
            starts.append(network.start)
        if batch_idx + 1 == self.trainer.num_training_batches:
            snapshots.append(tensors(network))

    def tensors(network):
        return {k: v.clone() for module in network.own.values() for k, v in module.state_dict().items()}

    monkeypatch.setattr(BlockwiseModule, "training_step", watched)
    study.train()
    expected = {
        "static": [(0, 1, 2)] * 4,
        "lp_ft": [(), (0, 1, 2), (0, 1, 2), (0, 1, 2)],
        "gradual": [(), (2,), (1, 2), (0, 1, 2)],
        "cyclic": [(2,), (1,), (0,), (2,)],
    }[policy]
    partition = study.staged.partition
    changed = set()
    for epoch, blocks in enumerate(expected):
        before, after = snapshots[2 * epoch], snapshots[2 * epoch + 1]
        trained = {layer.name for block in blocks for layer in partition.layers_of(block)}
        differ = {name.rpartition(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        assert differ <= trained
        with_parameters = {n.rpartition(".")[0] for b in blocks for la in partition.layers_of(b) for n in la.parameters}
        assert with_parameters <= differ | {"head"}
        changed |= set(blocks)
        # the epoch is paid for from the first stage that trains now or has been changed
        assert starts[epoch] == min(changed, default=3)


def test_the_head_phase_of_lp_ft_runs_no_stage_of_its_own(small, console, monkeypatch):
    """The work of its head epochs is that of `head`: frozen stages once, and the head."""
    study = Study.from_config(
        small("block=[head,full]", "policy=lp_ft", "policy.lp_ft.head_epochs=2", "trainer.max_epochs=3"), console
    )
    calls = []
    original = type(study.staged).run
    monkeypatch.setattr(
        type(study.staged),
        "run",
        lambda self, stage, activations, module=None: (
            calls.append((stage, module is not None)),
            original(self, stage, activations, module),
        )[1],
    )
    step = BlockwiseModule.training_step
    per_epoch = {}

    def watched(self, batch, batch_idx):
        calls.clear()
        step(self, batch, batch_idx)
        per_epoch[self.current_epoch] = list(calls)

    monkeypatch.setattr(BlockwiseModule, "training_step", watched)
    study.train()
    assert per_epoch[0] == per_epoch[1] == [(0, False), (1, False), (2, False)]
    assert sorted(per_epoch[2]) == sorted([(s, own) for s in range(3) for own in (False, True)])


def test_a_policy_of_ones_own_from_outside(small, console, tmp_path, monkeypatch):
    (tmp_path / "backwards.py").write_text(
        "from dataclasses import dataclass\n"
        "from blockwise.policies import Phase\n\n"
        "@dataclass(frozen=True)\n"
        "class FromTheInput:\n"
        "    first: int = 1\n\n"
        "    def __call__(self, blocks, epoch, max_epochs):\n"
        "        return Phase(blocks[: self.first + epoch])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["+policy.mine._target_=backwards.FromTheInput", "+policy.mine.first=1"]
    static, mine = run(small("block=full", *own), console)
    assert static.policy == "static"
    assert mine.settings["policy"] == {"name": "mine", "class": "backwards.FromTheInput", "first": 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=lp_ft", "policy.lp_ft.head_epochs=2"], "policy=lp_ft trains no block in 2 epochs"),
        (["policy=lp_ft", "policy.lp_ft.head_epochs=0"], "policy.lp_ft.head_epochs=0 must be an integer of at least 1"),
        (["policy=gradual", "policy.gradual.every=x"], "policy.gradual.every=x must be an integer"),
        (["~policy.static"], r"policy=\[\] trains nothing"),
        (["policy.static._target_=blockwise.policies.Gradual", "+policy.static.every=1"], "the name static is for"),
        (["policy.lp_ft.head_epochs=1"], r"belongs to policy=lp_ft: choose it, or .* policy=.static,lp_ft"),
        (["policy=[]"], r"policy=\[\] trains nothing"),
        (["policy=lp_ftt"], "Did you mean 'lp_ft'"),
        (["policy=cyclic", "+policy.cyclic.evry=2"], "policy=cyclic: blockwise.policies.Cyclic refuses its options"),
    ],
)
def test_wrong_policies_are_one_sentence(small_overrides, overrides, message):
    with pytest.raises(InputError, match=message):
        run(quick_config([*small_overrides, "block=full", *overrides]))


@pytest.mark.slow
def test_tables_and_claims_tell_policies_apart(together, small, console):
    from blockwise.analysis.report.page import _tables
    from blockwise.analysis.summary import sweeps

    run(small("block=all", "policy=[static,lp_ft]", "policy.lp_ft.head_epochs=1"), console)
    recorded = sweeps(read_records(small().results_dir))
    assert [sweep.policy for sweep in recorded].count("lp_ft") == 1
    (other,) = (sweep for sweep in recorded if sweep.policy == "lp_ft")
    assert other.title.endswith(", policy lp_ft")
    assert [row.scope for row in other.rows] == ["head", "0", "1", "2", "full"]
    assert {record.policy for record in other.records} == {"static", "lp_ft"}
    printed = console.export_text()
    assert "partition unit, policy lp_ft" in printed
    tables = {table.name: table.values for table in _tables(recorded, read_records(small().results_dir))}
    assert set(tables["summary"]["policy"]) == set(tables["scopes"]["policy"]) == {"static", "lp_ft"}
    claimed = list(tables["claims"]["claim"])
    assert "Policy lp_ft: The best block beats both baselines." in claimed
    assert "The best block beats both baselines." in claimed
    between = tables["policies"]
    assert list(between["treatment"]) == ["full", "best block"]
    assert set(between["first"]) == {"lp_ft"}
    assert set(between["pairs"]) == {1}


def test_blocks_that_begin_later_train_with_momentum(small, console):
    run(small("policy=gradual", "optimizer=sgd", "optimizer.lr=[0.01]", "block=full", "trainer.max_epochs=3"), console)
    (record,) = read_records(small().results_dir)
    assert record.status == "finished"
