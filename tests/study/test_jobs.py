"""Jobs of a multirun in separate processes: crashes, kills, interruptions, and the failure summary."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL

from blockwise.study.jobs import LOG, OUTCOME, ledger, run_job
from blockwise.study.worker import CELLS

TRAIN = [sys.executable, "-m", "blockwise", "train"]
QUICK = [*SMALL, "partition.num_blocks=3", "trainer.max_epochs=1"]
# sitecustomize.py, which Python runs at start: it makes the jobs of some seeds crash
CRASHES = """
import faulthandler, os, signal, sys
if "hydra.mode=RUN" in sys.argv:
    if "seed=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "seed=2" in sys.argv:
        faulthandler.enable()
        faulthandler._sigsegv()
"""


def scopes(folder):
    return sorted(json.loads(path.read_text())["cell"]["scope"] for path in folder.rglob("record.json"))


@pytest.mark.slow
def test_what_takes_a_job_down_takes_it_down_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    command = [*TRAIN, "-m", *QUICK, "block=head,0", "seed=1,2,0", "data.test_per_class=5"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert scopes(tmp_path) == ["0", "head"]
    lines = done.stderr.splitlines()
    start = lines.index("2 of 3 jobs failed:")
    assert "seed=1" in lines[start + 1]
    assert lines[start + 2].strip() == "killed by SIGKILL, perhaps because memory ran out"
    assert lines[start + 6].strip() == "killed by SIGSEGV"
    log = Path(lines[start + 7].split()[1])
    assert "Segmentation fault" in log.read_text()
    again = lines[start + 4].partition("again: ")[2]
    assert again.startswith("blockwise train ")
    assert {"seed=1", "block=[head,0]"} <= set(shlex.split(again))


def test_the_ledger_names_cells_reason_log_and_command(tmp_path):
    outcome = {"overrides": ["model=vgg16", "block=[0,1]"], "code": 1, "reason": "no luck", "cells": ["1@0.001"]}
    for number, reason in enumerate(["no luck", ""]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / OUTCOME).write_text(json.dumps({**outcome, "reason": reason, "log": str(folder / LOG)}))
    assert ledger(tmp_path) == [
        "1 of 2 jobs failed:",
        "  model=vgg16 'block=[0,1]' (cells without a record: 1@0.001)",
        "    no luck",
        f"    log:   {tmp_path / '0' / LOG}",
        "    again: blockwise train model=vgg16 'block=[0,1]'",
    ]


def test_a_failing_job_tells_its_cells_and_its_error(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    outcome = run_job([*QUICK, "block=[head,2]", "optimizer.lr=1e-2", "trainer.profiler=nonesuch"], tmp_path / "job")
    assert outcome.code == 2
    assert "profiler" in outcome.reason
    assert outcome.cells == []
    assert (tmp_path / "job" / LOG).read_text().strip().endswith(outcome.reason)
    assert "failed: " in capfd.readouterr().err


def _multirun(folder, *overrides):
    """Start a multirun of long jobs and return when its first has trained for a while."""
    long = [o for o in QUICK if "epochs" not in o]
    command = [*TRAIN, "-m", *long, "trainer.max_epochs=5000", "block=head,0", "seed=0,1", *overrides]
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in running.stdout:
        if line.startswith("epoch 2/"):
            return running
    raise AssertionError(running.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_multirun_lets_its_job_save_and_starts_no_other(tmp_path, number):
    with _multirun(tmp_path) as running:
        running.send_signal(number)
        errors = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + number
    assert errors.strip().splitlines()[-1].startswith("interrupted: progress is saved")
    assert len(list(tmp_path.rglob("*.ckpt"))) == 1
    (cells,) = tmp_path.rglob(CELLS)
    assert json.loads(cells.read_text()) == ["head@0.001", "0@0.001"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_killed_multirun_leaves_no_job_behind(tmp_path):
    with _multirun(tmp_path) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert children
        running.kill()
        running.communicate(timeout=60)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < until, "the job goes on"
        time.sleep(0.2)
    assert len(list(tmp_path.rglob("*.ckpt"))) == 1, "told to end, it has saved its work"
