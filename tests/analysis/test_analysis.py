import re
from dataclasses import replace
from io import StringIO

import grids
import pytest
from PIL import Image
from rich.console import Console

from blockwise.analysis.figures import accuracy_by_block
from blockwise.analysis.summary import Row, sweeps
from blockwise.analysis.sweep_table import print_table, sweep_table


def record(scope, val, test, **changes):
    return grids.record(scope, test, val=val, backbone="net", **{"data": "digits", **changes})


SWEEP = [
    record("head", 0.80, 0.81),
    record("0", 0.85, 0.84),
    record("1", 0.90, 0.88),
    record("2", 0.89, 0.95),  # best on test, but must not be selected
    record("10", 0.70, 0.70),
    record("full", 0.60, 0.61),
]


def printed(records, width=120):
    (sweep,) = sweeps(records)
    console = Console(width=width, record=True, file=StringIO())
    print_table(console, sweep_table(sweep))
    return console.export_text()


def test_the_best_block_is_chosen_on_validation():
    (sweep,) = sweeps(SWEEP)
    assert sweep.best.scope == "1"
    assert [row.scope for row in sweep.rows] == ["head", "0", "1", "2", "10", "full"]


def test_the_table_shows_differences_to_both_baselines():
    lines = {line.split()[0]: line for line in printed(SWEEP).splitlines() if line.strip()}
    assert re.search(r"1 \*\s+1-1\s+1\s+105,000\s+90\.0\s+88\.0\s+\+7\.0\s+\+27\.0\s+11\.0 s", lines["1"])
    assert "* best block by validation accuracy; test accuracy 88.0 (+7.0 over head only, +27.0 over full)" in " ".join(
        printed(SWEEP).split()
    )


def test_the_table_fits_eighty_columns():
    text = printed(SWEEP, 80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert printed(SWEEP, 40).replace("\n", "") == text.replace("\n", "")  # narrower: lines wrap


def test_each_scope_is_compared_at_its_own_best_rate():
    records = [
        record("head", 0.8, 0.1, lr=1e-2),
        record("head", 0.7, 0.9, lr=1e-3),
        record("0", 0.5, 0.5, lr=1e-2),
        record("0", 0.6, 0.6, lr=1e-3),
        record("full", 0.0, 0.0, lr=1e-2, status="diverged"),
        record("full", 0.3, 0.3, lr=1e-3),
    ]
    (sweep,) = sweeps(records)
    assert {row.scope: row.lr for row in sweep.rows} == {"head": 1e-2, "0": 1e-3, "full": 1e-3}
    assert "rate" in printed(records)


def test_seeds_are_averaged():
    records = [record("0", 0.5, 0.4, seed=0), record("0", 0.7, 0.6, seed=1), record("1", 0.45, 0.9, seed=0)]
    (sweep,) = sweeps(records)
    assert sweep.best.scope == "0"
    assert sweep.best.mean("test") == pytest.approx(0.5)
    assert sweep.best.spread("test") == pytest.approx(0.02**0.5)
    assert "50.0 ± 14.1" in printed(records)


def test_a_rate_at_which_a_seed_diverged_is_not_chosen():
    records = [
        record("0", 0.9, 0.9, seed=0, lr=1e-2),
        record("0", 0.0, 0.0, seed=1, lr=1e-2, status="diverged"),
        record("0", 0.5, 0.5, seed=0, lr=1e-3),
    ]
    (sweep,) = sweeps(records)
    assert sweep.best.lr == 1e-3


def test_a_scope_that_diverged_is_shown_as_such():
    text = printed([*SWEEP, record("3", 0, 0, status="diverged")])
    assert re.search(r"\n\s*3\s+diverged", text)


def test_differences_are_taken_over_common_seeds():
    records = [record("head", 0.9, 0.9, seed=0), record("head", 0.5, 0.5, seed=1), record("0", 0.7, 0.7, seed=1)]
    (sweep,) = sweeps(records)
    assert sweep.best.difference(sweep.row("head")) == pytest.approx(0.2)
    assert sweep.row("0").difference(Row("x", (), (), 0.1)) is None


def test_a_rate_with_fewer_seeds_is_not_compared():
    records = [record("0", 0.5, 0.5, seed=s) for s in (0, 1)] + [record("0", 0.9, 0.9, lr=1e-2)]
    (sweep,) = sweeps(records)
    assert sweep.best.lr == 1e-3


def test_after_a_search_each_seed_counts_at_the_rate_that_trained_to_its_end():
    left = {("6", 0): (1e-3, 0.95), ("6", 1): (1e-2, 0.95), ("6", 2): (1e-2, 0.95)}
    left |= {("2", seed): (1e-3, 0.75) for seed in range(3)}
    records = []
    for (scope, seed), (rate, accuracy) in left.items():
        records.append(grids.record(scope, accuracy, seed=seed, lr=rate))
        records.append(grids.record(scope, 0.0, seed=seed, lr={1e-3: 1e-2, 1e-2: 1e-3}[rate], status="pruned"))
    (sweep,) = sweeps(records)
    assert (sweep.best.scope, sweep.best.seeds, sweep.best.pruned) == ("6", {0, 1, 2}, ())
    assert sorted(record.lr for record in sweep.best.records) == [1e-3, 1e-2, 1e-2]


def test_a_cell_that_was_stopped_at_another_rate_changes_no_choice():
    scores = {("1", 1e-3, 0): 0.8, ("1", 1e-3, 1): 0.6, ("1", 1e-2, 0): 0.6, ("1", 1e-2, 1): 0.8}
    scores |= {("2", rate, seed): 0.75 for rate in (1e-3, 1e-2) for seed in (0, 1)}
    records = [grids.record(scope, score, seed=seed, lr=rate) for (scope, rate, seed), score in scores.items()]
    (sweep,) = sweeps([*records, grids.record("1", 0.0, lr=0.1, status="pruned")])
    assert (sweep.best.scope, sweep.row("1").mean("val")) == ("2", 0.7)


def test_head_alone_under_static_is_no_sweep_beside_that_of_a_policy():
    lp_ft = {"name": "lp_ft", "options": {"head_epochs": 1}}
    records = [grids.record(scope, 0.8) for scope in ("head", "1")]
    records[1] = replace(records[1], settings={**records[1].settings, "policy": lp_ft})
    (sweep,) = sweeps(records)
    assert (sweep.policy, [row.scope for row in sweep.rows]) == ("lp_ft", ["head", "1"])
    both = sweeps([*records, grids.record("1", 0.7)])
    assert sorted(sweep.policy for sweep in both) == ["lp_ft", "static"]


def test_of_two_joint_scopes_of_one_seed_the_newest_counts():
    records = [
        record("top2", 0.5, 0.5, blocks=[1, 2], finished="2026-01-02"),
        record("top2", 0.9, 0.9, blocks=[0, 1], finished="2026-01-01"),
    ]
    (sweep,) = sweeps(records)
    assert [row.blocks for row in sweep.rows] == [(1, 2)]
    assert sweep.rows[0].mean("test") == 0.5


def test_sweeps_of_other_settings_are_kept_apart():
    assert len(sweeps([*SWEEP, record("0", 0.5, 0.5, data="flowers")])) == 2


@pytest.mark.parametrize("records", [SWEEP, SWEEP[1:2], [record("0", 0.5, 0.4, seed=s) for s in (0, 1)]])
def test_the_picture(tmp_path, records):
    (sweep,) = sweeps(records)
    path = tmp_path / "picture.png"
    accuracy_by_block([sweep]).savefig(path, dpi=150)
    with Image.open(path) as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_blocks_are_compared_over_the_seeds_that_all_of_them_have():
    lucky = record("1", 0.9, 0.5, seed=1)  # block 0 has no seed 1
    (sweep,) = sweeps([record("0", 0.7, 0.7), record("1", 0.6, 0.6), lucky])
    assert sweep.best.scope == "0"
    (sweep,) = sweeps([record("0", 0.7, 0.7), lucky])  # no common seed: compare over all seeds
    assert sweep.best.scope == "1"


def test_a_partition_that_the_first_versions_cut_elsewhere_is_marked():
    (sweep,) = sweeps(SWEEP)
    name = sweep.partition
    assert sweep.title == f"net on digits, partition {name}"
    newer = replace(sweep, settings={**sweep.settings, "partition": {"name": name, "rules": 2}})
    assert newer.title == f"net on digits, partition {name} v2"
