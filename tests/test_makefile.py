"""`make` lists its targets, all of them parse, and the paper's grids run the right commands."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments):
    # as typed in a shell, also if these tests were started by make
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def documented():
    """Return the targets that have a `##` comment."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    return [line.partition(":")[0] for line in lines if "## " in line and not line.startswith(("#", "\t"))]


@pytest.fixture(scope="module")
def table():
    """The script behind the targets `table-*`."""
    spec = importlib.util.spec_from_file_location("table", ROOT / "experiments/paper/table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@NEEDS_MAKE
def test_make_alone_lists_all_documented_targets():
    listed = [line.split()[1] for line in make().stdout.splitlines()]
    assert listed == documented()
    assert {"demo", "report", "tables", "docs", "test", "lint", "format", "clean"} <= set(listed)


@NEEDS_MAKE
@pytest.mark.parametrize("target", documented())
def test_every_target_parses(target):
    done = make("--dry-run", "--always-make", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_target_is_phony():
    """A folder of the same name, as docs/, would otherwise count as built."""
    (phony,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY")]
    assert set(documented()) == set(phony.split()[1:])


@NEEDS_MAKE
@pytest.mark.parametrize("grid", ["flowers102", "caltech101", "tf_flowers", "demo"])
def test_grids_are_run_by_the_script(grid, table):
    printed = make("--dry-run", f"table-{grid}", "DATA=photos", "ARGS=trainer=gpu plan=true").stdout
    assert f"experiments/paper/table.py {grid} --data photos trainer=gpu plan=true" in printed
    assert grid in table.GRIDS


def test_a_grid_is_trained_and_then_tabled(table):
    train, tabled = table.commands("flowers102", Path("photos"), ["trainer=gpu"])
    settings = ["+paper=flowers102", "data.root=photos", "trainer=gpu"]
    assert train == [sys.executable, "train.py", "-m", "--config-dir", "experiments", *settings]
    out = [f"--out=experiments/paper/results/flowers102.{suffix}" for suffix in ("md", "csv")]
    assert tabled[1:] == ["-m", "blockwise", "table", "results/paper/flowers102", "--backbones", *out]


def test_the_flowers_of_the_preprint_have_a_folder_of_their_own(table):
    train, _ = table.commands("tf_flowers", Path("photos"), [])
    assert f"data.root={Path('photos/flower_photos')}" in train


def test_the_demo_adds_caltech_where_it_is(table, tmp_path):
    assert len(table.train_commands("demo", tmp_path, [])) == 2
    (tmp_path / "caltech101").mkdir()
    *others, caltech = table.train_commands("demo", tmp_path, ["trainer=cpu"])
    assert f"data.root={tmp_path}" in caltech
    assert not any("data.root" in setting for command in others for setting in command)
    assert all(command[-1] == "trainer=cpu" for command in [*others, caltech])


@pytest.mark.parametrize("grid", ["caltech101", "demo"])
def test_a_plan_has_no_table(table, grid, tmp_path):
    assert all("train.py" in command for command in table.commands(grid, tmp_path, ["plan=true"]))


@pytest.mark.parametrize(
    ("statuses", "status", "calls"),
    [
        ([0, 0], 0, 2),
        ([1, 0], 1, 2),  # some jobs failed: the table of the others is written
        ([0, 2], 2, 2),
        ([1, 2], 1, 2),
        ([130, 0], 130, 1),  # Ctrl-C ends it all
    ],
)
def test_the_exit_status_is_the_first_that_is_not_zero(table, monkeypatch, statuses, status, calls):
    called = []
    monkeypatch.setattr(table, "call", lambda command: called.append(command) or statuses[len(called) - 1])
    monkeypatch.setattr(sys, "argv", ["table.py", "caltech101", "--data", "photos", "seed=0"])
    assert table.main() == status
    assert len(called) == calls


def test_a_command_that_a_signal_ended_has_the_status_of_a_shell(table, monkeypatch):
    monkeypatch.setattr(table.signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    assert table.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert table.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
