"""Claims that are true, false, or undecidable on made-up grids."""

from dataclasses import replace

import numpy as np
import pytest
from grids import BACKBONES, diverged, flat, grid, peaked
from made_up import sweep_of

from blockwise.analysis.claims import claims
from blockwise.analysis.summary import sweeps
from blockwise.results.record import MetricsEntry

ENOUGH = BACKBONES[:8]


def verdicts(records):
    return [claim.verdict for claim in claims(sweeps(records))]


def test_true_claims_are_supported():
    assert verdicts(grid(peaked)) == ["supported"] * 4


def test_false_claims_are_not():
    assert verdicts(grid(flat)) == ["not supported"] * 4


@pytest.mark.parametrize("accuracy", [peaked, flat])
def test_a_few_backbones_decide_nothing(accuracy):
    found = verdicts(grid(accuracy, backbones=BACKBONES[:2]))
    assert found == ["not enough data"] * 4


def test_the_opposite_is_not_support():
    """A block that beats only one baseline does not support the claim."""

    def one_sided(backbone, data, scope, seed):
        return {"head": 0.5, "full": 0.99}.get(scope, 0.8)

    assert verdicts(grid(one_sided, backbones=ENOUGH))[0] == "not supported"


def test_chance_is_no_difference_between_backbones():
    """All blocks are equally good, so noise decides which one is best."""
    equal = grid(lambda *_: 0.8, noise=0.01)
    assert verdicts(equal)[1] == "not supported"


def test_one_seed_cannot_tell_backbones_from_chance():
    found = claims(sweeps(grid(peaked, seeds=(0,))))
    assert found[1].verdict == "not enough data"
    assert "more seeds are needed" in found[1].evidence
    assert found[3].verdict == "not enough data"
    assert "no backbone has two seeds" in found[3].evidence
    assert found[0].verdict == "supported"


def test_data_sets_are_runs_too():
    assert verdicts(grid(peaked, seeds=(0,), data=("flowers", "objects")))[1] == "supported"


def test_data_sets_that_differ_in_depth_do_not_hide_backbones():
    """On another data set, every best block is earlier; on each, backbones differ."""

    def shifted(backbone, data, scope, seed):
        moved = str((int(scope) + 6) % 12) if data == "objects" and scope.isdigit() else scope
        return peaked(backbone, data, moved, seed)

    records = grid(shifted, seeds=(0,), data=("flowers", "objects"))
    assert verdicts(records)[1] == "supported"
    # a second seed that has only begun takes nothing away
    more = [r for r in grid(shifted, seeds=(1,), backbones=BACKBONES[:1]) if r.cell.scope not in ("head", "full")]
    assert verdicts([*records, *more])[1] == "supported"


def test_survivors_of_a_search_do_not_stand_for_their_quarter():
    """In half of the sweeps, one block of the fourth quarter is the best; elsewhere the search stops all four."""

    def accuracy(backbone, data, scope, seed):
        lucky = int(backbone[3:]) % 2 == 0
        if scope in ("head", "full"):
            return 0.8
        return 0.9 if scope == ("9" if lucky else "3") else 0.7

    records = grid(accuracy, noise=0)
    searched = [
        replace(r, status="pruned", metrics=MetricsEntry(), best_epoch=None, provenance={"search": {"name": "halving"}})
        if r.cell.scope.isdigit() and r.metrics.val["top1"] < 0.8
        else r
        for r in records
    ]
    assert claims(sweeps(records))[2].verdict == "not supported"
    found = claims(sweeps(searched))
    assert [claim.verdict for claim in found[:3]] == ["supported", "supported", "not enough data"]


def test_missing_and_diverged_cells_are_left_out():
    records = grid(peaked)
    gone = [r for r in records if not (r.backbone.name == "net02" and r.cell.scope != "head")]
    gone = [diverged(r) if (r.backbone.name, r.cell.scope) == ("net05", "full") else r for r in gone]
    found = claims(sweeps(gone))
    assert [claim.verdict for claim in found] == ["supported"] * 4
    assert "median of 14 pairs" in found[0].evidence.split(";")[0]
    assert "median of 13 pairs" in found[0].evidence.split(";")[1]


def test_the_evidence_names_figures():
    best, differs, quarter, reliable = claims(sweeps(grid(peaked, noise=0, backbones=BACKBONES[:12])))
    assert best.evidence.startswith("+11.0 points to head (median of 12 pairs, p = 0.00049)")
    assert "backbones: 12, runs: 36" in differs.evidence
    assert "of its blocks 36 of 36 beat both" in quarter.evidence
    assert "-1.00 points of standard deviation against head" in reliable.evidence


def test_other_partitions_and_settings_are_no_further_observations():
    few = grid(peaked, backbones=BACKBONES[:3])
    again = grid(peaked, backbones=BACKBONES[:3])
    for record in again:
        record["partition"]["name"] = "even"
        record["settings"]["partition"] = {"name": "even"}
    alone, both = claims(sweeps(few)), claims(sweeps([*few, *again]))
    assert [claim.verdict for claim in both] == [claim.verdict for claim in alone]
    assert [both[number].verdict for number in (0, 2, 3)] == ["not enough data"] * 3
    assert "3 of the 6 pairs" in both[0].evidence


def test_a_backbone_with_a_single_common_seed_does_no_harm():
    records = [r for r in grid(peaked, backbones=BACKBONES[:7]) if not (r.backbone.name == "net01" and r.seed)]
    assert claims(sweeps(records))[1].verdict == "supported"


def test_equal_accuracies_tie_although_they_went_through_float32():
    def equal(backbone, data, scope, seed):
        return (0.2, 0.2) if scope in ("head", "full") else (0.1, 0.3)

    records = grid(lambda *place: equal(*place)[place[3]], backbones=BACKBONES[:7], seeds=(0, 1), noise=0)
    for record in records:
        for metrics in record["metrics"].values():
            metrics["top1"] = float(np.float32(metrics["top1"]))
    best, _, quarter, _ = claims(sweeps(records))
    assert best.evidence.startswith("+0.0 points to head (median of 7 pairs, p = 1)")
    assert "of its blocks 0 of 21 beat both" in quarter.evidence


@pytest.mark.parametrize(("margin", "verdict"), [(20, "supported"), (1, "not supported")])
def test_choices_that_are_toss_ups_are_no_difference_between_backbones(tmp_path, margin, verdict):
    """In all seeds, the same block of a backbone has the most images right: by many, or by one image."""
    recorded = []
    for number in range(3):
        right = {
            str(block): [np.arange(50) < 25 + margin * (block == 4 * number) for _ in range(3)] for block in range(12)
        }
        recorded.append(sweep_of(tmp_path / str(number), right, backbone=f"net{number:02}"))
    differs = claims(recorded)[1]
    assert differs.verdict == verdict
    assert ("may be the best of all backbones" in differs.evidence) == (margin == 1)
    assert "p = 0.0" in differs.evidence
