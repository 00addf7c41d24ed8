"""The paper's table: one row per backbone."""

import csv

import grids
import pytest

from blockwise.analysis.backbone_table import backbone_rows, backbone_table, write_rows
from blockwise.analysis.summary import sweeps
from blockwise.analysis.sweep_table import print_table
from blockwise.errors import InputError


def record(backbone, scope, seed, val, test):
    return grids.record(scope, test, val=val, backbone=backbone, seed=seed, data="digits", num_blocks=4)


@pytest.fixture
def rows():
    accuracies = {"head": (0.5, 0.5), "full": (0.6, 0.7), "1": (0.8, 0.6), "3": (0.9, 0.8)}
    records = [record("a", scope, seed, *acc) for scope, acc in accuracies.items() for seed in (0, 1)]
    records[-1] = record("a", "3", 1, 0.9, 0.9)
    return backbone_rows(sweeps([*records, record("b", "2", 0, 0.4, 0.3)]))


def test_a_row_has_both_baselines_the_best_block_and_its_gains(rows):
    assert list(rows[0].values()) == [
        "digits", "a", "segment", "2", "50.0 ± 0.0", "70.0 ± 0.0", "85.0 ± 7.1", "3", "4", "+35.0", "+15.0",
    ]  # fmt: skip


def test_what_is_missing_stays_empty(rows):
    assert list(rows[1].values()) == ["digits", "b", "segment", "1", "", "", "30.0", "2", "3", "", ""]


def test_it_is_printed_and_written(rows, console, tmp_path):
    print_table(console, backbone_table(rows))
    assert "best block" in console.export_text()
    write_rows(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    write_rows(rows, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {12}
    with pytest.raises(InputError, match="must end in .csv or .md"):
        write_rows(rows, tmp_path / "table.pdf")
    with pytest.raises(InputError, match="cannot be written to"):
        write_rows(rows, tmp_path / "nope" / "table.md")
    assert not (tmp_path / "nope").exists()
