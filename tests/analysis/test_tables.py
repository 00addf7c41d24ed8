"""Tables of the report: their numbers and the texts that readers see."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from grids import BACKBONES, diverged, flat, grid, peaked, record
from made_up import sweep_of

from blockwise.analysis import tables
from blockwise.analysis.statistics import accuracy_matrix, ranks
from blockwise.analysis.summary import sweeps

FEW = BACKBONES[:2]


def test_the_summary_shows_what_was_chosen_and_what_it_gains():
    table = tables.summary_table(sweeps(grid(peaked, noise=0, backbones=FEW)))
    first = table.texts.iloc[0]
    half = 100 * 4.302652729911275 * 0.01 / math.sqrt(3)
    assert first["backbone"] == "net00"
    assert first["head"] == f"81.0 ± {half:.1f}"
    assert first["best block"] == "92.0 ± 0.0"
    assert (first["block"], first["quarter"], first["Δ head"]) == ("6", "3", "+11.0")
    assert table.values["head high"].iloc[0] == pytest.approx(0.81 + half / 100)


def test_a_single_seed_has_no_interval():
    table = tables.summary_table(sweeps(grid(flat, seeds=(0,), backbones=FEW)))
    assert all("±" not in text for text in table.texts["head"])


def test_choosing_on_test_is_shown_to_be_better_and_is_not_done():
    records = [record("0", 0.7, val=0.9), record("1", 0.8, val=0.6), record("head", 0.5)]
    (line,) = tables.selection_table(sweeps(records)).values.to_dict("records")
    assert (line["chosen"], line["highest on test"]) == (0, 1)
    assert line["Δ"] == pytest.approx(0.1)


def test_what_is_missing_is_named():
    whole = grid(peaked, backbones=FEW)
    assert tables.gaps_table(sweeps(whole)) is None
    records = [
        r
        for r in whole
        if (r.backbone.name, r.cell.scope) != ("net01", "full")
        and (r.backbone.name, r.cell.scope, r.seed) != ("net00", "3", 1)
    ]
    records[0] = diverged(records[0])
    found = tables.gaps_table(sweeps(records)).texts[["backbone", "scope", "seeds", "why"]].to_numpy().tolist()
    assert found == [
        ["net00", "head", "0", "diverged"],
        ["net00", "head", "1 2", "set aside: another seed diverged"],
        ["net00", "3", "1", "no record"],
        ["net01", "full", "0 1 2", "no record"],
    ]


def test_with_too_little_data_there_is_a_sentence_and_no_number():
    table = tables.tests_table(sweeps(grid(peaked, backbones=FEW)))
    assert set(table.texts["p"]) == {""}
    assert set(table.texts["verdict"]) == {"not enough data: 9 pairs are needed"}


def test_files_hold_the_same_for_machines_and_readers(tmp_path):
    found = sweeps(grid(peaked, noise=0))
    every = [
        *(make(found) for make in (tables.summary_table, tables.scopes_table, tables.quarters_table)),
        *(make(found) for make in (tables.tests_table, tables.selection_table, tables.claims_table)),
        tables.ranks_table(ranks(accuracy_matrix(found))),
        tables.provenance_table(grid(peaked)),
    ]
    for table in every:
        data, markdown, latex = table.save(tmp_path)
        lines = list(csv.DictReader(data.open()))
        assert len(lines) == len(table.texts)
        assert len(markdown.read_text().splitlines()) == len(lines) + 2
        assert latex.read_text().count(r"\\") == len(lines) + 1
    summary = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert float(summary[0]["head"]) == pytest.approx(0.81)
    assert r"$\Delta$ head" in (tmp_path / "summary.tex").read_text()
    assert r"5 \%" in (tmp_path / "claims.tex").read_text() or r"\%" in (tmp_path / "summary.tex").read_text()


@pytest.mark.parametrize(("text", "latex"), [("a_b & 5 %", r"a\_b \& 5 \%"), ("±Δ", r"$\pm$$\Delta$")])
def test_latex_takes_every_character(text, latex):
    assert tables._latex(text) == latex


def test_gains_within_a_data_set_and_how_sure_the_choice_is(tmp_path):
    random = np.random.default_rng(0)
    hard = random.random((2, 400))
    right = {
        scope: list(hard < accuracy) for scope, accuracy in {"head": 0.7, "3": 0.8, "4": 0.81, "full": 0.82}.items()
    }
    sweep = sweep_of(tmp_path / "test", right, split="test")
    lines = tables.gains_table([sweep]).values.to_dict("records")
    assert [(line["block"], line["over"], line["seeds"]) for line in lines] == [(4, "head", 2), (4, "full", 2)]
    assert lines[0]["Δ"] == pytest.approx(sweep.row("4").difference(sweep.row("head")))
    assert 0 < lines[0]["Δ from"] < lines[0]["Δ"] < lines[0]["Δ to"]
    assert lines[0]["p"] < 1e-6
    assert tables.gains_table(sweeps(grid(peaked, backbones=FEW))) is None
    sure = tables.summary_table([sweep_of(tmp_path / "val", right)])
    assert set(sure.texts["may be best"].iloc[0].split()) <= {"3", "4"}
    assert 50 <= int(sure.texts["P(best)"].iloc[0]) <= 100
    assert "P(best)" in sure.note
    assert "P(best)" not in tables.summary_table(sweeps(grid(peaked, backbones=FEW))).note


def test_the_command_of_each_sweep_exports_it_to_a_folder_of_its_own():
    def made(**model):
        cells = [record("head", 0.5), record("3", 0.8)]
        return [replace(cell, settings={**cell.settings, "model": {"name": "net00", **model}}) for cell in cells]

    records = [*made(source="timm"), *made(source="torchvision"), *made(source="timm", head="mlp")]
    commands = tables.export_table(sweeps(records)).values["command"]
    folders = [command.split()[4] for command in commands]
    assert len(set(folders)) == 3
    assert sorted(command.endswith(" --format onnx") for command in commands) == [False, True, True]
    (alone,) = tables.export_table(sweeps(made(source="timm"))).values["command"]
    assert alone.endswith("-o net00-flowers")
