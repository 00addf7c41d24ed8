"""The notebooks run from top to bottom and are stored with their outputs."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FIGURES = {"quickstart": 1, "compare_blocks": 3, "own_data": 0}
# the same code on fewer images for fewer epochs: the stored outputs were made with all
QUICK = {"max_epochs": 1, "train_per_class": 6, "val_per_class": 2, "test_per_class": 4}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel that runs all notebooks, one after another, since imports take most of the time."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(tmp_path_factory.mktemp("notebooks")))
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


def figures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    return sum("image/png" in output.get("data", {}) for output in outputs)


def quickly(source):
    source = source.replace('"data=digits",', '"data=digits", "data.train_per_class=6", "data.val_per_class=2",')
    source = source.replace('"partition.num_blocks=6",', '"partition.num_blocks=2", "optimizer.lr=0.001",')
    for setting, value in QUICK.items():
        source = re.sub(rf"\b{setting}=\d+", f"{setting}={value}", source)
    return source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_is_kept_with(path, kernel):
    notebook = nbformat.read(path, 4)
    assert figures(notebook) == FIGURES[path.stem]
    for cell in notebook.cells:
        cell.get("outputs", []).clear()
        cell.source = quickly(cell.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # no names of another notebook
    nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
    assert figures(notebook) == FIGURES[path.stem]


def test_all_three_are_there():
    assert {path.stem for path in NOTEBOOKS} == set(FIGURES)
