import copy
import hashlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import grids
import pytest
import torch
from safetensors.torch import load_file

from blockwise.analysis.backbone_table import backbone_rows
from blockwise.analysis.summary import sweeps
from blockwise.analysis.sweep_table import sweep_table
from blockwise.errors import InputError
from blockwise.results import (
    METRICS,
    Record,
    ResultStore,
    find_records,
    read_history,
    read_records,
    settings_hash,
    sweep_hash,
)
from blockwise.results.predictions import to_bytes

SETTINGS = {
    "data": {"name": "digits"},
    "model": {"name": "net"},
    "partition": {"name": "segment"},
    "seed": 3,
    "scope": "7",
    "blocks": [7],
    "lr": 0.001,
}
ROW = dict.fromkeys(METRICS, 0.25)
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
    kept = {"label": [0, 1], "predicted": [1, 1], "confidence": [0.7, 1.0], "log_likelihood": [-1.2, 0.0]}
    predictions = to_bytes({"val": kept}, ("cat", "dog, wild"))
    record = store.save(WHOLE, [{"train": ROW, "val": ROW}], {"head.weight": transposed}, predictions)
    folder = Path(record.folder)
    assert folder == tmp_path / "results/digits/net/segment/7" / f"seed3-{settings_hash(SETTINGS)}"
    files = ["history.csv", "predictions.safetensors", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "record.json"])
    assert record.files == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    assert torch.equal(load_file(folder / "weights.safetensors")["head.weight"], transposed)
    header, row = (folder / "history.csv").read_text().splitlines()
    assert header.startswith("epoch,train_top1,")
    assert row == "0" + ",0.25" * 2 * len(METRICS)
    assert store.find(SETTINGS) == record == replace(WHOLE, files=record.files, folder=str(folder))
    assert read_records(tmp_path) == [record]


def test_a_history_of_an_earlier_version_has_no_probability(tmp_path):
    earlier = {name: value for name, value in ROW.items() if name != "probability"}
    history = [{"train": earlier, "val": earlier}]
    record = ResultStore(tmp_path).save(WHOLE, history, {})
    assert read_history(record.folder) == history
    file = Path(record.folder, "history.csv")
    header, row = file.read_text().splitlines()
    names = header.split(",")
    kept = [i for i, name in enumerate(names) if not name.endswith("probability")]
    file.write_text("".join(",".join(line.split(",")[i] for i in kept) + "\n" for line in (header, row)))
    assert read_history(record.folder) == history


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
    folder = Path(store.save(WHOLE, [], {}).folder)
    (folder / "record.json").write_text(content)
    assert store.find(SETTINGS) is None
    assert find_records(tmp_path) == []
    assert f"skipping {folder / 'record.json'}: " in capsys.readouterr().err


def parts(value, path=()):
    """Yield the path of every value inside a record, depth first."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from parts(inner, (*path, key))


def changed(content, path, value):
    content = copy.deepcopy(content)
    content = json.loads(json.dumps(content))
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


GONE = object()
WRONG = [None, True, -1, 1e999, 10**30, 0.5, "x", "", "/", [], {}, [None], {"a": 1}, GONE]
FULL = {
    **grids.record("7", 0.5).to_json(),
    "data": {**grids.record("7", 0.5)["data"], "skipped": ["x.png"]},
    "provenance": {"finished": "2026", "commit": "0" * 40, "dirty": False, "versions": {"torch": "2"}, "command": "x"},
}


@pytest.mark.parametrize("path", list(parts(FULL))[1:], ids=lambda path: ".".join(map(str, path)))
def test_a_record_of_which_anything_is_wrong_is_left_out_or_does_no_harm(tmp_path, path, console):
    """Every value replaced by every wrong one: it is refused with its file named, or can be tabled."""
    good = [grids.record(scope, 0.4) for scope in ("head", "3", "full")]
    for value in WRONG:
        text = json.dumps(changed(FULL, path, value))
        try:
            record = Record.from_json(text, "x/record.json")
        except InputError as error:
            assert str(error).startswith("x/record.json: ")
            assert "\n" not in str(error)
            continue
        recorded = sweeps([*good, record])
        for sweep in recorded:
            console.print(sweep_table(sweep))
        backbone_rows(recorded)
        settings_hash(record.settings)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("metrics", "test", "top1"), 1e999, "metrics.test.top1"),
        (("metrics", "test", "top1"), True, "metrics.test.top1"),
        (("metrics", "val", "loss"), 1e999, "metrics.val.loss"),
        (("metrics", "val", "top1"), 90.0, "metrics.val: top1 must be between 0 and 1"),
        (("status",), "done", "status"),
        (("seed",), True, "seed"),
        (("partition", "num_blocks"), 10**9, "partition.num_blocks"),
        (("cell", "scope"), "²", "cell.scope"),
        (("cell", "scope"), "\x1b[31m", "cell.scope"),
        (("cell", "blocks"), [8], "scope 7 must have this block alone"),
        (("cell", "blocks"), [7, 99], "scope 7 must have this block alone"),
        (("settings", "lr"), "fast", "settings: lr"),
        (("provenance", "versions"), ["torch"], "provenance"),
        (("best_epoch",), 99, "best_epoch 99 is none of the 5 epochs"),
    ],
)
def test_impossible_values_are_refused_by_name(path, value, field):
    with pytest.raises(InputError, match=re.escape(field)):
        Record.from_json(json.dumps(changed(FULL, path, value)))


def test_a_record_has_the_metric_that_selected_it():
    selected = changed(FULL, ("settings", "select_by"), "probability")
    Record.from_json(json.dumps(changed(selected, ("metrics", "val", "probability"), 0.5)))
    for split in ("train", "val", "test"):
        selected["metrics"][split].pop("probability", None)
    with pytest.raises(InputError, match="val metrics must have probability, by which it was selected"):
        Record.from_json(json.dumps(selected))


def test_a_record_copied_over_that_of_another_cell_is_named(tmp_path, capsys):
    store = ResultStore(tmp_path)
    other = replace(WHOLE, settings={**SETTINGS, "seed": 4}, seed=4)
    saved = [store.save(record, [], {}) for record in (WHOLE, other)]
    Path(saved[1].folder, "record.json").write_bytes(Path(saved[0].folder, "record.json").read_bytes())
    assert store.find(other.settings) is None
    assert find_records(tmp_path) == saved[:1]
    assert "it is the record of another cell" in capsys.readouterr().err


def test_settings_nested_too_deeply_are_refused():
    deep = json.dumps(FULL).replace('"x.png"', "[" * 10_000 + "]" * 10_000)
    with pytest.raises(InputError, match=r"record\.json: .*"):
        Record.from_json(deep)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
def test_only_regular_files_are_records(tmp_path, capsys):
    store = ResultStore(tmp_path)
    folder = Path(store.save(WHOLE, [], {}).folder)
    (folder / "record.json").unlink()
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
        make(folder / "record.json")
        assert store.find(SETTINGS) is None
        assert find_records(tmp_path) == []
        assert "skipping" in capsys.readouterr().err
        (folder / "record.json").rmdir() if (folder / "record.json").is_dir() else (folder / "record.json").unlink()


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
