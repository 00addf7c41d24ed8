"""A study whose images fit neither the cache nor memory."""

import numpy as np
import pytest
from PIL import Image

from blockwise.data.pixels import on_demand
from blockwise.study.run import run


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def small_run(small, console, photos, tmp_path, *overrides):
    data = ("data=imagefolder", f"data.root={photos}", "data.batch_size=4", "block=head", "data.train_per_class=8")
    places = (f"results_dir={tmp_path / 'results' / str(len(overrides))}",)
    (record,) = run(small(*data, "data.val_per_class=3", "data.test_per_class=2", *places, *overrides), console)
    return record, " ".join(console.export_text().split())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["cache.max_gb=0.00001"], "more than cache.max_gb=1e-05: cache.max_gb=1 to decode them once"),
        (["cache.folder=null", "seed=0"], "without a cache: set cache.folder to decode them once"),
    ],
)
def test_the_run_says_so_once_and_has_the_same_result(small, console, photos, tmp_path, monkeypatch, settings, reason):
    expected, text = small_run(small, console, photos, tmp_path)
    assert "images are decoded as they are read" not in text
    monkeypatch.setattr(on_demand, "MOST_IN_MEMORY", 0)
    record, text = small_run(small, console, photos, tmp_path, *settings)
    assert text.count("images are decoded as they are read") == 1
    assert reason in text
    assert [record.score(split) for split in ("train", "val", "test")] == [
        expected.score(split) for split in ("train", "val", "test")
    ]
