"""Terminals and pipes that know ASCII only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "fixtures" / "results_before"
ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def printed(*arguments, **variables):
    """Return what a new process prints: the encoding is fixed when Python starts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-m", "blockwise", *arguments],
        env={**environment, **variables}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout


# a run with such an output is in `test_same_everywhere.py`
@pytest.mark.parametrize("variables", ASCII, ids=["output", "locale"])
def test_a_table_with_deltas_and_deviations_is_printed(variables):
    text = printed("table", str(RESULTS), **variables).decode("ascii")
    assert "12.0 ? 2.8" in text
    assert "best block by validation accuracy" in text


@pytest.mark.slow
@pytest.mark.parametrize("variables", ASCII, ids=["output", "locale"])
def test_a_report_is_the_same_page(variables, tmp_path):
    pages = []
    for name, encoding in (("ascii", variables), ("utf8", {"PYTHONUTF8": "1"})):
        printed("report", str(RESULTS), "--out", str(tmp_path / name), **encoding)
        pages.append((tmp_path / name / "index.html").read_text(encoding="utf-8"))
    lines = [[line for line in page.splitlines() if "UTC" not in line] for page in pages]
    assert lines[0] == lines[1]
    assert "Δ" in pages[0]
