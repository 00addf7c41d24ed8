"""Records of an earlier version are found, skipped and reported as in that version; see fixtures/README.md."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from blockwise.cli import main
from blockwise.config import compose_config
from blockwise.results import read_records
from blockwise.study.study import Study

FIXTURES = Path(__file__).parent / "fixtures"
RESULTS = FIXTURES / "results_before"
EXPECTED = FIXTURES / "expected"
SMALL = (
    "model=timm model.pretrained=false data=digits data.image_size=32 data.train_per_class=8 data.val_per_class=3 "
    "data.test_per_class=5 data.batch_size=16 trainer.max_epochs=2 trainer.accelerator=cpu cache.folder=null"
).split()
COMMANDS = [
    "model.name=test_resnet partition=segment partition.num_blocks=3 block=all optimizer.lr=[1e-3,1e-2] seed=0",
    "model.name=test_resnet partition=segment partition.num_blocks=3 block=all optimizer.lr=[1e-3,1e-2] seed=1",
    "model.name=test_efficientnet partition=window partition.length=8 partition.stride=4 block=[head,0,-1,full] "
    "optimizer=sgd optimizer.lr=[1e-2,1e30]",
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table"], "table.txt"),
        (["table", "--backbones"], "backbones.txt"),
        (["claims", "--json"], "claims.json"),
    ],
)
def test_tables_and_claims_are_the_same(capsys, monkeypatch, arguments, expected):
    monkeypatch.setenv("COLUMNS", "120")
    command, *flags = arguments
    main([command, str(RESULTS), *flags])
    assert capsys.readouterr().out == (EXPECTED / expected).read_text()


def test_files_of_tables_are_the_same(tmp_path):
    files = [tmp_path / name for name in ("backbones.md", "backbones.csv")]
    main(["table", str(RESULTS), "--backbones", *(f"--out={file}" for file in files)])
    assert all(file.read_bytes() == (EXPECTED / file.name).read_bytes() for file in files)


@pytest.mark.slow
def test_tables_of_a_report_are_the_same(tmp_path):
    main(["report", str(RESULTS), "-o", str(tmp_path / "report")])
    written = {path.name: path for path in (tmp_path / "report" / "tables").iterdir() if path.stem != "export"}
    assert written.keys() == {path.name for path in (EXPECTED / "tables").iterdir()}
    for name, path in written.items():
        if path.suffix == ".csv":  # all digits, and the last ones may differ between versions of SciPy
            pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(EXPECTED / "tables" / name), rtol=1e-9)
        else:
            assert path.read_bytes() == (EXPECTED / "tables" / name).read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_trains_nothing(tmp_path, console, command):
    shutil.copytree(RESULTS, tmp_path / "results")
    study = Study.from_config(
        compose_config([*SMALL, *command.split(), f"results_dir={tmp_path / 'results'}"]), console
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("record.json")}
    records = study.train()
    text = " ".join(console.export_text().split())
    assert len(records) == len(study.cells())
    assert ", 0 of them already recorded" not in text
    assert "epoch" not in text
    assert {path: path.read_bytes() for path in tmp_path.rglob("record.json")} == before


def test_a_record_is_written_as_it_was_read():
    import json

    records = read_records(RESULTS)
    assert len(records) == 34
    for record in records:
        # what the first versions wrote of norms was not true, so it is corrected
        content = {**record.to_json(), "settings": {**record.settings, "freeze": {"norm": "train"}}}
        written = json.dumps(content, indent=2, allow_nan=False) + "\n"
        assert written == Path(record.folder, "record.json").read_text()
        assert record.settings["freeze"] == {"norm": "eval"}
