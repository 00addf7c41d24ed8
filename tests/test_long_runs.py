"""Long runs keep their memory, files and threads, and leave no process behind when they fail."""

import multiprocessing
import os
from pathlib import Path

import pytest
from conftest import SMALL
from processes import blockwise, started

from blockwise.study.run import run
from blockwise.training.module import BlockwiseModule

EPOCHS = 200
# by then all code has run, and memory for a batch of each kind is allocated
WARM = 20
TINY = [o for o in SMALL if not o.startswith(("data.train", "data.val", "data.test", "trainer.max_epochs"))]
TINY += ["data.train_per_class=4", "data.val_per_class=1", "data.test_per_class=1", "partition.num_blocks=3"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc tells what a process holds")
# fail in the second step, and write down which workers there are
FAIL = """
import multiprocessing
from pathlib import Path
from blockwise.training.module import BlockwiseModule

def training_step(self, batch, index, step=BlockwiseModule.training_step):
    if index == 1:
        pids = [str(child.pid) for child in multiprocessing.active_children()]
        Path("workers").write_text(" ".join(pids))
        raise RuntimeError("the second step fails")
    return step(self, batch, index)

BlockwiseModule.training_step = training_step
"""


def held(pid):
    """Return what a process holds: bytes of memory, open files, threads, child processes."""
    process = Path("/proc", str(pid))
    pages = int((process / "statm").read_text().split()[1])
    children = " ".join((thread / "children").read_text() for thread in (process / "task").iterdir()).split()
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "children": len(children),
    }


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_two_hundred_epochs_hold_their_memory_files_threads_and_lines(tmp_path, workers):
    command = ["train", *TINY, f"trainer.max_epochs={EPOCHS}", "block=[head,1,full]", f"data.num_workers={workers}"]
    lines, after = [], {}
    with started(*command, folder=tmp_path) as running:
        for line in running.stdout:
            lines.append(line)
            if line.startswith("epoch "):
                after[int(line.split()[1].partition("/")[0])] = held(running.pid)
        running.wait(timeout=60)
        assert running.returncode == 0, running.stderr
        assert running.stderr == ""
    assert list(after) == list(range(1, EPOCHS + 1)), "one line per epoch"
    assert len(lines) < EPOCHS + 30
    assert max(map(len, lines)) < 200
    # the lowest of ten epochs, since memory is higher while a batch is computed
    before, end = ([after[epoch] for epoch in range(last - 9, last + 1)] for last in (WARM, EPOCHS))
    growth = min(now["memory"] for now in end) / min(then["memory"] for then in before) - 1
    assert growth < 0.02, f"{growth:+.2%} of {before[-1]['memory'] / 1e6:.0f} MB"
    for kind in ("files", "threads", "children"):
        assert max(now[kind] for now in end) <= max(then[kind] for then in before), kind


@needs_proc
def test_no_worker_outlives_a_command_that_fails(tmp_path):
    failed = blockwise("train", *TINY, "block=head", "data.num_workers=1", folder=tmp_path, before=FAIL)
    assert failed.returncode == 1
    assert "the second step fails" in failed.stderr
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 1
    assert [pid for pid in workers if Path("/proc", pid).exists()] == []


def test_no_worker_outlives_a_failure_in_python(small, console, monkeypatch):
    """A notebook goes on, and keeps the traceback of the failure."""

    def fail(*_):
        assert multiprocessing.active_children()
        raise RuntimeError("this step fails")

    monkeypatch.setattr(BlockwiseModule, "training_step", fail)
    with pytest.raises(RuntimeError, match="this step fails"):
        run(small("block=head", "data.num_workers=1"), console)
    assert multiprocessing.active_children() == []
