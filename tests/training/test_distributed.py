"""Two processes that share each batch, compared with a single process."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from processes import blockwise
from safetensors.torch import load_file

from blockwise.errors import InputError
from blockwise.exports.use.evaluate import evaluate
from blockwise.exports.write import export
from blockwise.results import read_predictions, read_record
from blockwise.study.run import run

# 50 images to train in batches of 16: the last has 2, one per process
CELLS = ["block=[head,1,full]", "freeze.norm=eval", "data.augment=[crop,flip]"]
TRAIN = [sys.executable, "-m", "blockwise", "train"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]
RAY = ["hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=0", "+hydra.launcher.ray.init.num_cpus=2"]


def train(folder, *overrides, cwd="."):
    return blockwise("train", *overrides, f"results_dir={folder}", folder=cwd, timeout=300)


def kept(folder):
    return {path.parent.parent.name: path for path in sorted(folder.rglob("record.json"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "overrides"),
    [
        (2, ["data.folds=2"]),  # folds take turns: each process has the images of one fold
        (3, ["data.folds=2"]),
        (3, []),  # the last batch has two images
        (3, ["data.val_per_class=1", "data.batch_size=2"]),  # no batch of any split has three
    ],
)
def test_a_process_without_images_of_a_batch_takes_part(small, small_overrides, console, tmp_path, devices, overrides):
    run(small(*CELLS, *overrides, f"results_dir={tmp_path / 'one'}"), console)
    several = [*DDP, f"trainer.devices={devices}", *small_overrides, *CELLS, *overrides]
    done = train(tmp_path / "several", *several)
    assert done.returncode == 0, done.stderr
    one, others = kept(tmp_path / "one"), kept(tmp_path / "several")
    assert one.keys() == others.keys()
    for scope, path in one.items():
        mine, other = (json.loads(p.read_text())["metrics"] for p in (path, others[scope]))
        for split in ("train", "val", "test"):
            assert mine[split] == pytest.approx(other[split], abs=1e-4), (scope, split)


@pytest.mark.slow
def test_the_record_with_batch_statistics_is_that_of_one_network(small_overrides, tmp_path):
    overrides = [*small_overrides, "block=full", "freeze.norm=train", "data.test_per_class=9"]
    done = train(tmp_path / "two", *DDP, *overrides)
    assert done.returncode == 0, done.stderr
    (path,) = kept(tmp_path / "two").values()
    record = read_record(path)
    command = f"python train.py {' '.join(overrides)}"
    record = replace(record, provenance={**record.provenance, "command": command})
    export(record, tmp_path / "out", format="delta")
    found = evaluate(tmp_path / "out")
    assert found.same_images
    assert found.metrics == pytest.approx(record.metrics.test, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "multirun",
    [
        pytest.param(options, id=name)
        for name, options in (
            ("one run", []),
            ("basic", ["-m", "seed=0,1"]),
            ("ray", ["-m", "seed=0,1", *RAY]),
            ("submitit", ["-m", "seed=0,1", "hydra/launcher=submitit_local"]),
        )
    ],
)
def test_two_processes_give_the_weights_of_one(small, small_overrides, console, tmp_path, multirun):
    run(small(*CELLS, f"results_dir={tmp_path / 'one'}"), console)
    done = train(tmp_path / "two", *DDP, *multirun, *small_overrides, *CELLS, cwd=tmp_path)
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
        ours, theirs = (
            read_predictions(read_record(p)) for p in (path, two[scope].parent.parent / path.parent.name / path.name)
        )
        assert ours.label.tolist() == theirs.label.tolist()  # in the order of the data
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)
        weights = load_file(path.parent / "weights.safetensors")
        for name, tensor in load_file(two[scope].parent.parent / path.parent.name / "weights.safetensors").items():
            assert (tensor - weights[name]).abs().max() < 1e-5, name


@pytest.mark.slow
def test_stopped_it_goes_on_and_ends_as_if_it_had_not_been(small_overrides, tmp_path):
    overrides = [*DDP, *small_overrides, *CELLS, "trainer.max_epochs=12"]
    assert train(tmp_path / "unbroken", *overrides).returncode == 0
    command = [*TRAIN, *overrides, f"results_dir={tmp_path / 'broken'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not running.stdout.readline().startswith("epoch 2/"):
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        errors = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + signal.SIGTERM, errors
    assert list(tmp_path.rglob("*.ckpt"))
    assert not kept(tmp_path / "broken")
    again = train(tmp_path / "broken", *overrides)
    assert again.returncode == 0, again.stderr
    assert "resuming from the checkpoint" in again.stdout
    broken = kept(tmp_path / "broken")
    for scope, path in kept(tmp_path / "unbroken").items():
        mine, other = (json.loads(p.read_text())["metrics"] for p in (path, broken[scope]))
        assert mine == other
        first, second = (load_file(p.parent / "weights.safetensors") for p in (path, broken[scope]))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.slow
def test_wrong_input_is_said_once(small_overrides, tmp_path):
    done = train(tmp_path, *DDP, *small_overrides, "block=99")
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert "block=99 is out of range" in sentence


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "to train one run on several devices, use trainer=ddp"),
        (["trainer=ddp", "trainer.strategy=fsdp"], "trainer.strategy=fsdp cannot train cells side by side"),
        (["trainer=ddp", "trainer.devices=0"], "trainer.devices=0 must be a number of devices"),
    ],
)
def test_what_cannot_be_shared_is_refused(small, console, overrides, message):
    with pytest.raises(InputError, match=message):
        run(small(*overrides), console)
