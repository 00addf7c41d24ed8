"""The layout: imports go one way only, and no folder grows too large."""

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
MOST_FILES = 10


def test_imports_keep_the_contracts(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("place", ["src", "conf"])
def test_no_folder_holds_too_many_files(place):
    # a model or a data set each has a file of its own, and there may be many
    exempt = {ROOT / "conf" / "model", ROOT / "conf" / "data", ROOT / "src" / "blockwise" / "data" / "sources"}
    folders = [folder for folder in (ROOT / place).rglob("*") if folder.is_dir() and folder not in exempt]
    counts = {str(folder): len([*folder.glob("*.py"), *folder.glob("*.yaml")]) for folder in folders}
    assert {folder: number for folder, number in counts.items() if number > MOST_FILES} == {}
