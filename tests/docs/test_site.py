"""The site builds without warnings and shows the notebooks with their outputs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from notebook_pages import copy_notebooks  # noqa: E402 (the documentation's own module)

COPIED = ("docs", "conf", "notebooks", "experiments", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def test_the_copies_of_the_notebooks_are_kept_up_to_date(tmp_path):
    source, target = tmp_path / "notebooks", tmp_path / "tutorials"
    source.mkdir()
    target.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.ipynb").write_text(name)
    copied = copy_notebooks(source, target)
    before = copied[1].stat().st_mtime_ns
    (source / "a.ipynb").unlink()
    assert copy_notebooks(source, target) == [target / "b.ipynb"] == list(target.iterdir())
    assert copied[1].stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    html = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(html)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert 'class="cell_output' in (html / "tutorials" / f"{notebook.stem}.html").read_text()
