"""Scores of blocks in a study: the same each time, in the right place, and used by `search=ranked`."""

import pytest
from rich.console import Console

from blockwise.errors import InputError
from blockwise.ranking import score_names
from blockwise.results import read_records
from blockwise.study.run import run
from blockwise.study.study import Study

SLOW = ("gradient_norm", "gradient_snr", "saliency")


@pytest.mark.parametrize(
    "score", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in score_names()]
)
def test_a_study_ranks_every_block_the_same_each_time(small, console, score):
    first, second = (Study.from_config(small("optimizer.lr=[0.001,0.01]"), console).ranking(score) for _ in range(2))
    assert first == second
    assert set(first) == {"0", "1", "2"}
    # what a network with random weights hands from block to block tells nothing
    assert len(set(first.values())) > 1 or score == "probe"


def test_the_first_loss_is_weighted_by_class(small, console):
    options = ["loss.class_weights=balanced", "data.train_per_class=6"]
    assert set(Study.from_config(small(*options), console).ranking("first_loss")) == {"0", "1", "2"}


@pytest.mark.slow
def test_a_ranked_search_trains_the_first_and_is_found_by_an_exhaustive_one(small, console):
    cfg = small("search=ranked", "search.keep=1", "search.score=fisher")
    ranking = Study.from_config(cfg, console).ranking("fisher")
    records = {record.cell.scope for record in run(cfg, console)}
    assert records == {"head", "full", max(ranking, key=ranking.get)}
    console.export_text()
    run(small(), console)
    assert "5 cells, 3 of them already recorded" in console.export_text()
    assert len(read_records(small().results_dir)) == 5


def test_scores_do_not_touch_the_weights(small, tmp_path):
    quiet = Console(quiet=True)
    plain = run(small("block=1"), quiet)
    study = Study.from_config(small("block=1", f"results_dir={tmp_path / 'ranked'}"), quiet)
    for score in ("gradient_snr", "probe"):
        study.ranking(score)
    (record,) = study.train()
    assert (record.metrics, record.files) == (plain[0].metrics, plain[0].files)


def test_an_unknown_score_is_named(small, console):
    with pytest.raises(InputError, match=r"search.score=fish is unknown: choose gradient_norm.*mean 'fisher'"):
        run(small("search=ranked", "search.score=fish"), console)
