"""timm's own transform of an export makes the images that the cell was trained and tested on."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from blockwise.backbone.makers.base import ImageSpec
from blockwise.exports.formats import crop_pct
from blockwise.exports.images import read_images


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "share"),
    [(48, 0.875), (64, 0.875), (96, 0.875), (160, 0.875), (224, 0.9), (224, 0.95), (224, 1.0), (299, 0.875)],
)
def test_images_are_those_of_timm(tmp_path, size, share, interpolation):
    spec = ImageSpec(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation, share)
    path = tmp_path / "square.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 130, 3), np.uint8)).save(path)
    config = {
        "input_size": (3, size, size), "mean": spec.mean, "std": spec.std, "interpolation": interpolation,
        "crop_pct": crop_pct(spec), "crop_mode": "center",
    }  # fmt: skip
    of_timm = timm.data.create_transform(**timm.data.resolve_data_config(config))(Image.open(path))
    (ours,), broken = read_images([path], spec)
    assert not broken
    torch.testing.assert_close(of_timm, ours, atol=1e-6, rtol=0)
    again = ImageSpec(size, spec.mean, spec.std, interpolation, crop_pct(spec))
    assert again.resized == spec.resized
