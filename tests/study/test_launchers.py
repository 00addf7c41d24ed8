"""Real Hydra launchers: a Ray cluster on this machine, and submitit's local executor."""

import json
import os
import subprocess
import sys

import pytest
from conftest import SMALL

TRAIN = [sys.executable, "-m", "blockwise", "train", "-m"]
QUICK = [*SMALL, "partition.num_blocks=3", "trainer.max_epochs=1"]
# sitecustomize.py, which Python runs at start: jobs write down their GPU, and one of them is killed
JOBS = """
import os, signal, sys
if "hydra.mode=RUN" in sys.argv:
    with open(os.path.join(os.environ["SEEN"], str(os.getpid())), "w") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if "seed=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def multirun(folder, *overrides):
    seen = folder / "seen"
    seen.mkdir()
    (folder / "sitecustomize.py").write_text(JOBS)
    environment = {**os.environ, "PYTHONPATH": str(folder), "SEEN": str(seen)}
    command = [*TRAIN, *QUICK, "block=head,0", "seed=0,1,2", *overrides]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    seeds = [json.loads(path.read_text())["seed"] for path in folder.rglob("record.json")]
    return done, sorted(seeds), {path.read_text() for path in seen.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_gpus=2", "+hydra.launcher.ray.init.num_cpus=2"),
        ("hydra/launcher=submitit_local",),
    ],
    ids=lambda launcher: launcher[0],
)
def test_jobs_are_spread_and_a_killed_one_is_named(tmp_path, launcher):
    pytest.importorskip("ray" if "ray" in launcher[0] else "submitit")
    done, seeds, gpus = multirun(tmp_path, *launcher)
    assert done.returncode == 1, done.stderr
    assert seeds == [0, 0, 2, 2]
    assert "1 of 3 jobs failed:" in done.stderr
    assert "killed by SIGKILL" in done.stderr
    if "ray" in launcher[0]:
        assert gpus == {"0", "1"}, "each of two GPUs had a job"


def slurm(folder, path):
    command = [*TRAIN, *QUICK, "seed=0,1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_without_slurm_it_says_so(tmp_path):
    pytest.importorskip("submitit")
    done = slurm(tmp_path, str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "error: hydra/launcher=submitit_slurm finds no srun: run it on a machine with Slurm\n"


@pytest.mark.slow
def test_slurm_gets_what_the_config_says(tmp_path, monkeypatch):
    """Without a cluster: a fake sbatch stores the script that it receives."""
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f"#!/bin/sh\ncp $1 {tmp_path}/script\necho 'slurm is not here' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    done = slurm(tmp_path, f"{tmp_path}:{os.environ['PATH']}")
    assert "slurm is not here" in done.stderr
    script = (tmp_path / "script").read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "array=0-2%3", "signal=USR2@120", "time=720", "mem=32GB"):
        assert f"#SBATCH --{line}" in script
