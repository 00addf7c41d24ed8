"""The table of a sweep says how sure its choice is."""

import numpy as np
import pytest
from grids import grid, peaked, record
from made_up import sweep_of
from rich.console import Console

from blockwise.analysis.frame import records_frame
from blockwise.analysis.summary import sweeps
from blockwise.analysis.sweep_table import print_table, sweep_table
from blockwise.cli import main


def printed(sweep, **options):
    console = Console(width=160, record=True)
    print_table(console, sweep_table(sweep, **options))
    return " ".join(console.export_text().split())


def blocks(*accuracies):
    hard = np.random.default_rng(0).random(100)
    own = np.random.default_rng(1).random((100, len(accuracies)))
    return {"head": [hard < 0.5], **{str(b): [0.8 * hard + 0.2 * own[:, b] < a] for b, a in enumerate(accuracies)}}


def test_a_toss_up_is_called_so(tmp_path):
    sweep = sweep_of(tmp_path, blocks(0.7, 0.71, 0.7, 0.69))
    text = printed(sweep)
    assert "P(best)" in text
    assert "no clear best block: ~ may also be the best block; P(best) of the blocks marked * or ~ is " in text
    assert text.count(" ~ ") >= 3
    assert f"{sweep.best.scope} *" in text


def test_a_clear_choice_is_called_so(tmp_path):
    text = printed(sweep_of(tmp_path, blocks(0.5, 0.9, 0.55)))
    assert "P(best) of this block is 100 %, by the validation images" in text
    assert "no clear" not in text


def test_smooth_scores_are_announced(tmp_path):
    sweep = sweep_of(tmp_path, blocks(0.5, 0.9, 0.55))
    sentence = "if neighbouring blocks are alike, block 1 is expected to be the best"
    assert sentence in printed(sweep, smooth=True)
    assert sentence not in printed(sweep)
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path), "--smooth", "--backbones"])


def test_rates_at_the_edge_are_named():
    def swept(*rates_of_head):
        heads = [record("head", 0.5 + number / 10, lr=rate) for number, rate in enumerate(rates_of_head)]
        return printed(sweeps([*heads, *(record("0", 0.9 - rate, lr=rate) for rate in (0.1, 0.2))])[0])

    assert "best at the lowest or highest rate that was tried: head, 0; try further rates" in swept(0.1, 0.2)
    assert "highest rate that was tried: 0; try" in swept(0.1)
    assert "highest rate that was tried: 0; try" in swept(0.1, 0.3, 0.2)


def test_gains_on_test_have_an_interval(tmp_path):
    text = printed(sweep_of(tmp_path, blocks(0.6, 0.9), split="test"))
    assert "over head only [+" in text
    assert "95 % intervals over test images)" in text
    assert "P(best)" not in text, "there are no predictions of validation images"


def test_records_of_earlier_versions_have_their_table():
    text = printed(sweeps(grid(peaked, backbones=["net00"]))[0])
    assert "P(best)" not in text
    assert "[" not in text


def test_the_data_frame_says_it_as_well(tmp_path):
    frame = records_frame(sweep_of(tmp_path, blocks(0.5, 0.9, 0.55)).records).set_index("scope")
    assert frame.loc[["0", "1", "2"], "may_be_best"].tolist() == [False, True, False]
    assert frame.loc["1", "p_best"] == pytest.approx(1, abs=0.01)
    assert frame.loc["head", ["p_best", "may_be_best"]].isna().all()
