"""The notebooks run from top to bottom and are stored with their outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FIGURES = {"quickstart": 1, "compare_blocks": 3, "own_data": 0}


def figures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_is_kept_with(path, tmp_path):
    notebook = nbformat.read(path, 4)
    assert figures(notebook) == FIGURES[path.stem]
    for cell in notebook.cells:
        cell.get("outputs", []).clear()
        # the same code, in less time: what it shows was made with all epochs
        cell.source = cell.source.replace("max_epochs=5", "max_epochs=1")
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert figures(notebook) == FIGURES[path.stem]


def test_all_three_are_there():
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)
