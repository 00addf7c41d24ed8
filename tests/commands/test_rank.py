"""The command that scores blocks before training."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from conftest import SMALL
from rich.console import Console

from blockwise.cli import main
from blockwise.commands.rank import print_ranking, rank_model
from blockwise.errors import InputError

SETTINGS = [*(word for word in SMALL if not word.startswith("model=") and "name" not in word), "partition.num_blocks=3"]


def test_it_prints_places_and_records_nothing(tmp_path, monkeypatch, console):
    monkeypatch.chdir(tmp_path)
    found = rank_model("test_resnet", SETTINGS, ["fisher", "probe"], Console(quiet=True))
    assert list(found.scores) == ["fisher", "probe"]
    print_ranking(found, console, as_json=False)
    lines = console.export_text().splitlines()
    for block in range(3):
        (line,) = [line for line in lines if line.split()[:1] == [str(block)]]
        place = sorted(found.scores["fisher"].values(), reverse=True).index(found.scores["fisher"][str(block)]) + 1
        assert f"[{place}]" in line
    known = json.loads((files("blockwise.ranking") / "agreement.json").read_text())
    (line,) = [line for line in lines if line.split()[:1] == ["mean"]]
    assert [float(word) for word in line.split()[2:]] == [known["tau"][name][0] for name in found.scores]
    assert f"in {known['sweeps']} sweeps" in " ".join(" ".join(lines).split())
    assert not list(Path(tmp_path).iterdir())


def test_json_is_all_that_goes_to_stdout(capsys):
    main(["rank", "test_resnet", *SETTINGS, "--score", "saliency", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["title"] == "test_resnet on digits"
    assert set(found["scores"]["saliency"]) == {"0", "1", "2"}


def test_wrong_names_are_named():
    with pytest.raises(InputError, match=r"search.score=fish is unknown: choose"):
        rank_model("test_resnet", SETTINGS, ["fish"], Console(quiet=True))
    with pytest.raises(InputError, match="there is no setting"):
        rank_model("test_resnet", ["data.imge_size=3"], [], Console(quiet=True))
