"""The frozen stages' output for training images is computed once, and changes nothing."""

import pytest
import torch
from rich.console import Console

from blockwise.backbone.stages import StagedBackbone
from blockwise.results import read_records
from blockwise.study.run import run
from blockwise.study.study import Study
from blockwise.training.step.image_cache import ImageCache

LATE = ["block=[head,2]", "data.augment=none", "trainer.max_epochs=3"]


def results(folder):
    return {record.cell.scope: (record.metrics, record.files) for record in read_records(folder)}


@pytest.fixture
def counted(monkeypatch):
    """Count the images that pass the first frozen stage in training steps."""
    count = {"images": 0}
    run_stage = StagedBackbone.run

    def counting(self, stage, activations, module=None):
        if stage == 0 and module is None:
            count["images"] += len(next(value for value in activations.values() if isinstance(value, torch.Tensor)))
        return run_stage(self, stage, activations, module)

    monkeypatch.setattr(StagedBackbone, "run", counting)
    return count


@pytest.mark.parametrize("gigabytes", [1, 0, pytest.param(1e-9, marks=pytest.mark.slow)])
def test_records_are_the_same_with_and_without_a_cache(small, tmp_path, counted, gigabytes):
    quiet = Console(quiet=True)
    run(small("block=[head,2]", *LATE[1:], "cache.activations_gb=1", f"results_dir={tmp_path / 'cached'}"), quiet)
    cached = counted["images"]
    counted["images"] = 0
    run(small(*LATE, f"cache.activations_gb={gigabytes}", f"results_dir={tmp_path / 'other'}"), quiet)
    assert results(tmp_path / "cached") == results(tmp_path / "other")
    # 50 images of three epochs, in three whole batches and one of two: whole ones are cached, and the first is checked
    assert (counted["images"] > cached) == (gigabytes != 1)


def test_images_that_the_first_epoch_does_not_draw_are_cached_as_well(small, tmp_path):
    settings = [*LATE, "data.sampler=balanced", "trainer.max_epochs=4", "seed=10"]
    for gigabytes in (0, 1):
        own = [f"cache.activations_gb={gigabytes}", f"results_dir={tmp_path / str(gigabytes)}"]
        study = Study.from_config(small(*settings, *own), Console(quiet=True))
        study.train()
    count, batches = study.data.train_positions(0)
    assert max(position for batch in batches for position in batch) < count - 1  # else this tests nothing
    assert results(tmp_path / "0") == results(tmp_path / "1")


def test_augmented_images_are_not_cached(small, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageCache, "at", lambda *_: pytest.fail("it caches"))
    run(small("block=2", "data.augment=light", f"results_dir={tmp_path}"), Console(quiet=True))
    run(small("block=0", "data.augment=none", f"results_dir={tmp_path}"), Console(quiet=True))


class Rounding:
    """A backbone whose output depends on what else is in the batch."""

    def __init__(self, batch=0.0):
        self.batch, self.calls = batch, 0

    def onward(self, start, activations, wanted):
        self.calls += 1
        (boundary,) = wanted
        yield boundary, {"x": activations["x"] * 2 + self.batch * self.calls}


def batches(order, size=4):
    images = torch.arange(12.0).reshape(12, 1)
    return [(chunk.tolist(), {"x": images[chunk]}) for chunk in torch.tensor(order).split(size)]


def test_whole_batches_are_read_after_a_check():
    cache, backbone = ImageCache(10**6, 12), Rounding()
    for order in (range(10), range(10), reversed(range(10))):
        for positions, activations in batches(list(order)):
            expected = activations["x"] * 2
            assert torch.equal(cache.at(1, positions, backbone, activations)["x"], expected)
    # first epoch: 2 whole batches and a short one; second: the check, a hit, the short one; third: images 9 and 8 were
    # only in the short one
    assert cache.hits == 2
    assert backbone.calls == 3 + 2 + 2


def test_a_cache_that_differs_in_one_bit_is_given_up():
    cache, backbone = ImageCache(10**6, 12), Rounding(batch=1e-6)
    for _ in range(3):
        for positions, activations in batches(list(range(8))):
            cache.at(1, positions, backbone, activations)
    assert cache.hits == 0
    assert backbone.calls == 6


def test_another_boundary_begins_anew():
    cache, backbone = ImageCache(10**6, 12), Rounding()
    ((positions, activations),) = batches(list(range(4)))
    for _ in range(3):
        cache.at(1, positions, backbone, activations)
    assert cache.hits == 1
    assert torch.equal(cache.at(2, positions, backbone, activations)["x"], activations["x"] * 2)
    assert cache.hits == 1
    assert cache.at(0, positions, backbone, activations) is activations
