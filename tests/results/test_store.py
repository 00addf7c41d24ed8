import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from blockwise.errors import InputError
from blockwise.results import Record, ResultStore, find_records, read_records, settings_hash, sweep_hash

SETTINGS = {
    "data": {"name": "digits"},
    "model": {"name": "net"},
    "partition": {"name": "segment"},
    "seed": 3,
    "scope": "7",
    "blocks": [7],
    "lr": 0.001,
}
ROW = dict.fromkeys(("top1", "top5", "macro_f1", "ece", "loss"), 0.25)
RECORD = {
    "schema": 1,
    "status": "finished",
    "seed": 3,
    "settings": SETTINGS,
    "backbone": {"name": "net"},
    "data": {"name": "digits", "classes": 2, "image_size": 8, "train": 4, "val": 2, "test": 2},
    "partition": {"name": "segment", "num_blocks": 12},
    "cell": {"scope": "7", "blocks": [7], "quarter": 3, "trainable_parameters": 9},
    "metrics": dict.fromkeys(("train", "val", "test"), ROW),
    "seconds": 1.5,
    "provenance": {},
}
WHOLE = Record.from_json(json.dumps(RECORD))


def test_files_of_a_cell(tmp_path):
    store = ResultStore(tmp_path / "results")
    assert store.find(SETTINGS) is None
    transposed = torch.arange(6.0).reshape(2, 3).T
    predictions = [("cat", "dog"), ("dog, wild", "dog, wild")]
    folder = store.save(WHOLE, [{"train": ROW, "val": ROW}], {"head.weight": transposed}, predictions)
    assert folder == tmp_path / "results/digits/net/segment/7" / f"seed3-{settings_hash(SETTINGS)}"
    files = ["history.csv", "predictions.csv", "record.json", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files
    with (folder / "predictions.csv").open() as file:
        assert list(csv.reader(file)) == [["label", "predicted"], *map(list, predictions)]
    assert torch.equal(load_file(folder / "weights.safetensors")["head.weight"], transposed)
    header, row = (folder / "history.csv").read_text().splitlines()
    assert header.startswith("epoch,train_top1,")
    assert row == "0" + ",0.25" * 10
    assert store.find(SETTINGS) == replace(WHOLE, folder=str(folder))
    assert read_records(tmp_path) == [replace(WHOLE, folder=str(folder))]


def test_a_record_that_cannot_be_written_leaves_none(tmp_path):
    store = ResultStore(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.save(replace(WHOLE, seconds=float("nan")), [], {})
    assert store.find(SETTINGS) is None
    assert not list(store.cell_folder(SETTINGS).glob(".*"))


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"schema": 2}', '{"schema": 1}'),
        json.dumps({**RECORD, "metrics": None}),
        json.dumps({**RECORD, "metrics": {"train": ROW, "val": ROW, "test": None}}),
        json.dumps({**RECORD, "metrics": {split: {**ROW, "top1": None} for split in ("train", "val", "test")}}),
        json.dumps({**RECORD, "seconds": float("nan")}),
        json.dumps({**RECORD, "cell": {"scope": None}}),
        json.dumps({**RECORD, "settings": None}),
    ],
)
def test_half_written_and_foreign_records_count_as_missing(tmp_path, content, capsys):
    store = ResultStore(tmp_path)
    folder = store.save(WHOLE, [], {})
    (folder / "record.json").write_text(content)
    assert store.find(SETTINGS) is None
    assert find_records(tmp_path) == []
    assert f"skipping {folder / 'record.json'}: " in capsys.readouterr().err


def test_the_hash_covers_every_setting():
    assert settings_hash(SETTINGS) == settings_hash(json.loads(json.dumps(SETTINGS)))
    for key in SETTINGS:
        assert settings_hash(SETTINGS) != settings_hash({**SETTINGS, key: "other"})
    same = {**SETTINGS, "scope": "head", "blocks": [], "lr": 1.0, "seed": 9}
    assert sweep_hash(SETTINGS) == sweep_hash(same) != sweep_hash({**SETTINGS, "data": {"name": "x"}})


@pytest.mark.parametrize("place", ["/proc/blockwise", "file/below"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"results_dir=.* cannot be written to"):
        ResultStore(tmp_path / place)


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(InputError, match="contains no records"):
        read_records(tmp_path)


def test_fractions_may_be_off_by_float32_rounding_and_no_more():
    def content(value):
        metrics = {split: {**ROW, "macro_f1": value} for split in ("train", "val", "test")}
        return json.dumps({**RECORD, "metrics": metrics})

    assert Record.from_json(content(1.0 + 1e-7)).score("test", "macro_f1") > 1
    for value in (1.001, -0.001):
        with pytest.raises(InputError, match=r"metrics\.train: macro_f1"):
            Record.from_json(content(value), "x/record.json")
