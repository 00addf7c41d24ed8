"""Two processes that share each batch, against one process that has all of it."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from blockwise.errors import InputError
from blockwise.study import run

# 50 images to train in batches of 16: the last has 2, one a process
CELLS = ["block=[head,1,full]", "freeze.norm=eval", "data.augment=[crop,flip]"]


def train(folder, *overrides):
    command = [sys.executable, "-m", "blockwise", "train", *overrides, f"results_dir={folder}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def kept(folder):
    return {path.parent.parent.name: path for path in sorted(folder.rglob("record.json"))}


@pytest.mark.parametrize("multirun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_give_the_weights_of_one(small, small_overrides, console, tmp_path, multirun):
    run(small(*CELLS, f"results_dir={tmp_path / 'one'}"), console)
    options = ["trainer=ddp", "trainer.accelerator=cpu", *(["-m", "seed=0,1"] if multirun else [])]
    done = train(tmp_path / "two", *options, *small_overrides, *CELLS)
    assert done.returncode == 0, done.stderr
    one, two = kept(tmp_path / "one"), kept(tmp_path / "two")
    assert one.keys() == two.keys()
    for scope, path in one.items():
        mine, other = (
            json.loads(p.read_text()) for p in (path, two[scope].parent.parent / path.parent.name / path.name)
        )
        assert mine["settings"] == other["settings"]
        for split in ("train", "val", "test"):
            assert mine["metrics"][split] == pytest.approx(other["metrics"][split], abs=1e-4)
        weights = load_file(path.parent / "weights.safetensors")
        for name, tensor in load_file(two[scope].parent.parent / path.parent.name / "weights.safetensors").items():
            assert (tensor - weights[name]).abs().max() < 1e-5, name


def test_wrong_input_is_said_once(small_overrides, tmp_path):
    done = train(tmp_path, "trainer=ddp", "trainer.accelerator=cpu", *small_overrides, "block=99")
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert "block=99 is out of range" in sentence


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "several devices share a run with trainer=ddp"),
        (["trainer=ddp", "trainer.strategy=fsdp"], "trainer.strategy=fsdp does not know of cells side by side"),
        (["trainer=ddp", "trainer.devices=0"], "trainer.devices=0 must be a number of devices"),
    ],
)
def test_what_cannot_be_shared_is_refused(small, console, overrides, message):
    with pytest.raises(InputError, match=message):
        run(small(*overrides), console)
