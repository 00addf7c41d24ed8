"""A finished run is recognised only while its settings, its files and its records are what they were."""

import os

import grids
import pytest

from blockwise.results.finished import mark_finished, recall_finished, run_key
from blockwise.results.store import read_records


@pytest.fixture
def run(tmp_path):
    """The config of a run, its records, and the mark that it has finished."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_text("image")
    (tmp_path / "weights.pth").write_text("weights")
    cfg = {
        "results_dir": str(tmp_path / "results"),
        "seed": 0,
        "plan": False,
        "model": {"name": "net", "checkpoint": str(tmp_path / "weights.pth")},
        "data": {"name": "flowers", "root": str(tmp_path / "images"), "source": {"_target_": "blockwise.data.X"}},
    }
    grids.save([grids.record("head", 0.5), grids.record("3", 0.6)], tmp_path / "results")
    records = read_records(tmp_path / "results")
    mark_finished(cfg, run_key(cfg), "2 cells", records)
    return cfg, records


def test_it_is_recalled_with_its_records(run):
    cfg, records = run
    done = recall_finished({**cfg, "plan": True})
    assert done.headline == "2 cells"
    assert done.records == records


@pytest.mark.parametrize("what", ["image", "name", "weights", "another image", "setting", "code of your own"])
def test_whatever_could_change_the_result_counts(run, tmp_path, what):
    cfg, _ = run
    image = tmp_path / "images" / "1.png"
    if what == "image":
        os.utime(image, ns=(1, 1))
    elif what == "name":
        image.rename(tmp_path / "images" / "2.png")
    elif what == "another image":
        (tmp_path / "images" / "2.png").write_text("image")
    elif what == "weights":
        (tmp_path / "weights.pth").write_text("others")
    elif what == "setting":
        cfg["seed"] = 1
    else:
        cfg["data"]["source"]["_target_"] = "mine.Source"
    assert recall_finished(cfg) is None


def test_several_folders_and_the_names_of_classes_count(run, tmp_path):
    cfg, _ = run
    (tmp_path / "more").mkdir()
    (tmp_path / "names.txt").write_text("a")
    cfg["data"] |= {"root": [str(tmp_path / "images"), str(tmp_path / "more")], "classes": str(tmp_path / "names.txt")}
    key = run_key(cfg)
    (tmp_path / "names.txt").write_text("b!")
    named = run_key(cfg)
    (tmp_path / "more" / "2.png").write_text("image")
    assert len({key, named, run_key(cfg)}) == 3


def test_a_table_names_its_images_so_nothing_is_recalled(run):
    cfg, _ = run
    cfg["data"]["source"]["_target_"] = "blockwise.data.sources.table.CsvTable"
    assert run_key(cfg) is None


def test_a_record_that_is_gone_or_damaged_is_trained_again(run, tmp_path):
    cfg, records = run
    path = tmp_path / "results" / os.path.relpath(records[0].folder, tmp_path / "results") / "record.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    assert recall_finished(cfg) is None
    path.unlink()
    assert recall_finished(cfg) is None
    path.write_text(whole)
    assert recall_finished(cfg) is not None


def test_missing_files_are_left_to_the_run(run, tmp_path):
    cfg, _ = run
    (tmp_path / "weights.pth").unlink()
    assert run_key(cfg) is None


def test_a_link_to_a_parent_folder_is_not_walked(run, tmp_path):
    cfg, _ = run
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "images" / "here").symlink_to(".")
    assert run_key(cfg) is not None
