"""Damaged records, histories and predictions: refused in one line that names the file, or tabled without harm."""

import copy
import json
import tempfile
from functools import reduce
from io import StringIO
from operator import getitem
from pathlib import Path

import grids
import pytest
from fuzzing import check_line, damaged, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from blockwise.analysis.backbone_table import backbone_rows
from blockwise.analysis.report.classes import confusion_matrix, gains_by_class, history, predictions
from blockwise.analysis.summary import Row, sweeps
from blockwise.analysis.sweep_table import sweep_table
from blockwise.errors import InputError
from blockwise.io.names import LONGEST
from blockwise.results import Record, read_history, settings_hash
from blockwise.results.predictions import from_bytes

GOOD = tuple(grids.record(scope, 0.4) for scope in ("head", "3", "full"))
CONTENT = grids.record("7", 0.5).to_json()
BYTES = json.dumps(CONTENT).encode()
CONSOLE = Console(width=100, file=StringIO())


def read_and_table(content):
    try:
        record = Record.from_json(content, "x/record.json")
    except InputError as error:
        assert str(error).startswith("x/record.json: ")
        raise
    recorded = sweeps([*GOOD, record])
    for sweep in recorded:
        # texts of a record that is fine, such as names, may contain anything that is not a command
        CONSOLE.print(sweep_table(sweep))
    backbone_rows(recorded)
    settings_hash(record.settings)
    again = json.dumps(record.to_json())  # compared as text, since settings may contain NaN, which equals nothing
    assert json.dumps(Record.from_json(again).to_json()) == again
    CONSOLE.file.truncate(0)


def places(value, path=()):
    """Yield the path of every value inside a record."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_changes(changes):
    content = copy.deepcopy(CONTENT)
    for path, key, value in changes:
        *parents, last = path
        try:
            place = reduce(getitem, parents, content)
            if key is None:
                place[last] = value
            else:
                place[last][key] = value
        except (LookupError, TypeError):  # an earlier change has removed the place
            continue
    return json.dumps(content)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 1e308, 1e-320, -0.0]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=6)
PLACES = st.sampled_from(list(places(CONTENT))[1:])
CHANGES = st.lists(st.tuples(PLACES, st.one_of(st.none(), st.text(max_size=10)), VALUES), min_size=1, max_size=3)


@given(st.binary(max_size=200))
@examples()
def test_bytes_are_no_record(content):
    with within_limits():
        read_and_table(content)


@given(damaged(BYTES))
@examples()
def test_a_record_with_damaged_bytes_is_refused_or_tabled(content):
    with within_limits():
        read_and_table(content)


@given(CHANGES)
@examples(0.6)
def test_a_record_with_other_values_is_refused_or_tabled(changes):
    with within_limits():
        read_and_table(with_changes(changes))


def test_the_name_of_a_field_is_shown_short_and_without_commands():
    metrics = {**CONTENT["metrics"], "test": {"top1": 0.5, "\x1b[31m\n" * 1000: "x"}}
    with pytest.raises(InputError, match="metrics.test") as caught:
        Record.from_json(json.dumps({**CONTENT, "metrics": metrics}))
    check_line(str(caught.value))
    assert len(str(caught.value)) < 5 * LONGEST


with tempfile.TemporaryDirectory() as _folder:
    grids.save([grids.record("7", 0.5)], _folder)
    HISTORY, PREDICTIONS = (
        next(Path(_folder).rglob(name)).read_bytes() for name in ("history.csv", "predictions.safetensors")
    )
# what earlier versions kept
PREDICTIONS_CSV = b"label,predicted\ndaisy,daisy\niris,daisy\n"


def row_of(folder):
    record = Record.from_json(BYTES)
    object.__setattr__(record, "folder", str(folder))
    return Row("7", (7,), (record,), 1e-3)


@given(st.one_of(damaged(HISTORY), st.binary(max_size=100)))
@examples()
def test_a_damaged_history_is_read_or_none(content):
    with within_limits() as folder:
        (folder / "history.csv").write_bytes(content)
        assert isinstance(read_history(folder), list)
        history(row_of(folder))


@given(damaged(PREDICTIONS))
@examples()
def test_damaged_predictions_are_refused_or_fit_together(content):
    with within_limits():
        try:
            splits = from_bytes(content)
        except ValueError:
            return
        for kept in splits.values():
            assert len(kept.label) == len(kept.correct) == len(kept.log_likelihood)
            assert [kept.classes[number] for number in kept.predicted]


@given(st.one_of(damaged(PREDICTIONS_CSV), st.binary(max_size=100)))
@examples(0.5)
def test_damaged_predictions_of_earlier_versions_are_read_or_none(content):
    with within_limits() as folder:
        (folder / "predictions.csv").write_bytes(content)
        kept = predictions(row_of(folder))
        if kept is not None:
            confusion_matrix(kept)
            gains_by_class(kept, kept)
