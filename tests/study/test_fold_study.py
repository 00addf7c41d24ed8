"""Folds from the command line's settings to the records."""

from pathlib import Path

import pytest
from processes import blockwise

from blockwise.analysis.summary import sweeps
from blockwise.analysis.uncertainty.confidence import confidence
from blockwise.errors import InputError
from blockwise.results.predictions import read_predictions
from blockwise.results.store import find_records
from blockwise.study.run import run
from blockwise.study.study import Study

FOLDS = ["data.folds=4", "block=[head,0,2]", "partition=segment", "partition.num_blocks=3"]


def test_records_are_out_of_fold_on_validation_and_of_all_images_on_test(small, console):
    records = run(small(*FOLDS), console)
    assert [record.status for record in records] == ["finished"] * 3
    for record in records:
        assert (record.data.train, record.data.val) == (80, 80)
        assert record.settings["data"]["folds"] == 4
        val = read_predictions(record, "val")
        assert len(val.label) == 80
        assert (val.label == val.predicted).mean() == pytest.approx(record.metrics.val["top1"])
    told = console.export_text()
    assert "4 folds of 80 images: 50 to train and 30 to validate are joined" in told
    (sweep,) = sweeps(find_records(Path(small(*FOLDS).results_dir)))
    assert confidence(sweep) is not None


def test_a_cell_alone_has_the_record_of_a_cell_among_others(small, console, tmp_path):
    among = {record.cell.scope: record for record in run(small(*FOLDS, "block=[head,2]"), console)}
    (alone,) = run(small(*FOLDS, "block=2", f"results_dir={tmp_path / 'alone'}"), console)
    assert alone.metrics == among["2"].metrics
    assert alone.files == among["2"].files


def test_a_fold_that_has_a_single_image_of_a_batch_skips_it(small, console):
    """80 images in batches of 26 leave a last batch of two, one of each fold."""
    options = ["data.folds=2", "data.batch_size=26", "block=full", "freeze.norm=train", "trainer.max_epochs=1"]
    (record,) = run(small(*options), console)
    assert record.status == "finished"


@pytest.mark.slow
def test_a_search_over_folds_leaves_its_survivors_as_they_are(small, console, tmp_path):
    options = [*FOLDS, "data.folds=2", "block=all", "trainer.max_epochs=3"]
    everything = {record.cell.scope: record for record in run(small(*options), console)}
    searched = run(small(*options, "search=halving", f"results_dir={tmp_path / 'searched'}"), console)
    finished = [record for record in searched if record.status == "finished"]
    assert 3 <= len(finished) < len(searched)
    for record in finished:
        assert record.metrics == everything[record.cell.scope].metrics
        assert record.files == everything[record.cell.scope].files


def test_folds_are_settings_of_their_own(small, console):
    hashes = {}
    for name, options in {"none": [], "two": ["data.folds=2"], "four": ["data.folds=4"]}.items():
        hashes[name] = Study.from_config(small(*options), console).settings["data"]
    assert "folds" not in hashes["none"]
    assert hashes["two"]["folds"] == 2
    assert hashes["four"]["folds"] == 4


def test_a_plan_counts_the_networks_of_all_folds(small, console):
    one, _ = Study.from_config(small("block=[0]"), console).plan()
    four, _ = Study.from_config(small("block=[0]", "data.folds=4"), console).plan()
    assert four[0].flops == 4 * one[0].flops
    assert four[0].trainable == one[0].trainable


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["data.folds=1"], "data.folds=1 must be an integer of at least 2, or null"),
        (["data.folds=20"], "data.folds=20 is too many: class '0' has 8 images"),
        (["data.groups=x"], "data.groups says which images share a fold: set data.folds as well"),
        (["data.folds=2", "data.groups=("], "data.groups=( is not a regular expression"),
        (["data.folds=2", "data.groups=nothing"], "data.groups=nothing does not fit the image"),
        (["data.folds=2", "data.mixup=0.2"], "data.folds=2 cannot be combined with data.mixup"),
    ],
)
def test_folds_that_cannot_be(small, console, options, sentence):
    cfg = small()
    for option in options:
        key, value = option.removeprefix("data.").split("=")
        cfg.data[key] = value if key == "groups" else float(value) if "." in value else int(value)
    with pytest.raises(InputError) as raised:
        Study.from_config(cfg, console)
    assert sentence in str(raised.value)


@pytest.mark.slow
def test_two_processes_train_as_one(small, small_overrides, console, tmp_path):
    (one,) = run(small("block=2", "data.folds=4", f"results_dir={tmp_path / 'one'}"), console)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"results_dir={tmp_path / 'two'}"]
    options = [*small_overrides, "block=2", "data.folds=4", *ddp]
    done = blockwise("train", *options, folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    (two,) = find_records(tmp_path / "two")
    for split in ("train", "val", "test"):
        expected, actual = getattr(one.metrics, split), getattr(two.metrics, split)
        assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-4)
