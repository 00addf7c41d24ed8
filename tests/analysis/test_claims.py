"""Claims that are true, that are false, and that cannot be decided."""

import pytest
from grids import BACKBONES, flat, grid, peaked

from blockwise.analysis.claims import claims
from blockwise.analysis.summary import sweeps

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
    """A block that beats one baseline and not the other."""

    def one_sided(backbone, data, scope, seed):
        return {"head": 0.5, "full": 0.99}.get(scope, 0.8)

    assert verdicts(grid(one_sided, backbones=ENOUGH))[0] == "not supported"


def test_chance_is_no_difference_between_backbones():
    """Blocks are equally good: noise decides which is best."""
    equal = grid(lambda *_: 0.8, noise=0.01)
    assert verdicts(equal)[1] == "not supported"


def test_one_seed_cannot_tell_backbones_from_chance():
    found = claims(sweeps(grid(peaked, seeds=(0,))))
    assert found[1].verdict == "not enough data"
    assert "more seeds are needed" in found[1].evidence
    assert found[3].verdict == "not enough data"
    assert "no sweep has two seeds" in found[3].evidence
    assert found[0].verdict == "supported"


def test_data_sets_are_runs_too():
    assert verdicts(grid(peaked, seeds=(0,), data=("flowers", "objects")))[1] == "supported"


def test_missing_and_diverged_cells_are_left_out():
    records = grid(peaked)
    gone = [r for r in records if not (r["backbone"]["name"] == "net02" and r["cell"]["scope"] != "head")]
    for record in gone:
        if record["backbone"]["name"] == "net05" and record["cell"]["scope"] == "full":
            record.update(status="diverged", metrics={"train": None, "val": None, "test": None})
    found = claims(sweeps(gone))
    assert [claim.verdict for claim in found] == ["supported"] * 4
    assert "median of 14 sweeps" in found[0].evidence.split(";")[0]
    assert "median of 13 sweeps" in found[0].evidence.split(";")[1]


def test_the_evidence_names_figures():
    best, differs, quarter, reliable = claims(sweeps(grid(peaked, noise=0, backbones=BACKBONES[:12])))
    assert best.evidence.startswith("+11.0 points to head (median of 12 sweeps, p = 0.00049)")
    assert "backbones: 12, runs: 36" in differs.evidence
    assert "of its blocks 36 of 36 beat both" in quarter.evidence
    assert "lower by 1.00 points" in reliable.evidence
