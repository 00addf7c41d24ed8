"""A step on a GPU: never waits for the device, resumes, and copes with a lack of memory."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from gpu_sweeps import ON_GPU, SMALL, train

from blockwise.data.augment import gather_pixels, gather_rows
from blockwise.data.datamodule import BlockwiseDataModule
from blockwise.results.store import find_records
from blockwise.training.module import BlockwiseModule

pytestmark = ON_GPU


@pytest.fixture
def sweep(tmp_path):
    return partial(train, tmp_path)


def test_steps_never_wait_for_the_device(sweep, monkeypatch):
    step = BlockwiseModule.training_step
    evaluate = BlockwiseModule.validation_step
    watched = []

    def strictly(function):
        def run(self, batch, batch_idx):
            # the first batch is run plainly, the second is recorded
            strict = batch_idx not in (0, 1) or self.current_epoch > 0
            torch.cuda.set_sync_debug_mode("error" if strict and len(batch[1]) == 32 else "default")
            watched.append(strict)
            try:
                return function(self, batch, batch_idx)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    monkeypatch.setattr(BlockwiseModule, "training_step", strictly(step))
    monkeypatch.setattr(BlockwiseModule, "validation_step", strictly(evaluate))
    sweep()
    assert sum(watched) > 5
    watched.clear()
    sweep("gpu.cells_at_once=0")
    assert sum(watched) > 5


def test_batches_are_cut_without_waiting(sweep, monkeypatch):
    cut = BlockwiseDataModule.on_after_batch_transfer
    count = []

    def strictly(self, batch, index):
        count.append(1)
        if len(count) < 3:
            return cut(self, batch, index)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return cut(self, batch, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(BlockwiseDataModule, "on_after_batch_transfer", strictly)
    sweep("block=head")
    assert len(count) > 10


def test_a_lack_of_memory_halves_the_cells(sweep, monkeypatch):
    step = BlockwiseModule.training_step

    def hungry(self, batch, batch_idx):
        if len(self.cells) > 2:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(BlockwiseModule, "training_step", hungry)
    cells, _ = sweep("block=[head,0,1,full]", "trainer.max_epochs=1")
    assert len(cells) == 4
    assert all(test is not None for _, test, _ in cells.values())


def test_ctrl_c_and_resume(tmp_path):
    command = [
        sys.executable, "-m", "blockwise.train", *SMALL, "+trainer.deterministic=true", "trainer.max_epochs=12",
        f"cache.folder={tmp_path}",
    ]  # fmt: skip
    whole = subprocess.run([*command, f"results_dir={tmp_path / 'whole'}"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*command, f"results_dir={tmp_path / 'parts'}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130, rest
    again = subprocess.run([*command, f"results_dir={tmp_path / 'parts'}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout
    expected, actual = ({r.cell.scope: r for r in find_records(tmp_path / name)} for name in ("whole", "parts"))
    assert {k: r.metrics for k, r in actual.items()} == {k: r.metrics for k, r in expected.items()}


def test_one_process_of_several(tmp_path):
    since = time.monotonic()
    command = [sys.executable, "-m", "blockwise.train", *SMALL, "trainer=ddp", "trainer.devices=1"]
    options = ["trainer.accelerator=gpu", "trainer.max_epochs=1", f"results_dir={tmp_path}", f"cache.folder={tmp_path}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - since < 300


@pytest.mark.parametrize("count", [0, 3])
def test_images_on_the_gpu_are_the_same(count):
    pixels = torch.randint(256, (8, 3, 40, 40), dtype=torch.uint8)
    places = torch.randperm(8)[: count or 8]
    draws = [(int(i), 7 - int(i), bool(i % 2)) for i in range(len(places))]
    expected = gather_rows(pixels[places], 32, draws)
    assert torch.equal(gather_pixels(pixels.cuda(), 32, draws, places.cuda()).cpu(), expected)
