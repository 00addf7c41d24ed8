"""Images that a data module keeps on a device; here the device is the CPU."""

import numpy as np
import pytest
import torch

from blockwise.backbone.load import ImageSpec
from blockwise.data import BlockwiseDataModule, Digits
from blockwise.data.augment import crop_and_flip, gather_pixels, gather_rows
from blockwise.data.pixels.on_device import AT_ONCE, copy_to_device, to_device

CPU = torch.device("cpu")


def test_every_split_keeps_its_images():
    rng = np.random.default_rng(0)
    splits = [rng.integers(256, size=(count, 3, 4, 4), dtype=np.uint8) for count in (AT_ONCE + 3, 1, 5)]
    pixels, places = copy_to_device(splits, CPU)
    for split, own in zip(splits, places, strict=True):
        positions = rng.permutation(len(split)).tolist()
        assert len(own) == len(split)
        assert np.array_equal(pixels[torch.from_numpy(own[positions])].numpy(), split[positions])


@pytest.mark.parametrize("augment", ["none", "flip", "light", "colour"])
def test_batches_are_the_same(augment):
    spec = ImageSpec(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", 0.8)
    source = Digits(train_per_class=5, val_per_class=2, test_per_class=2)
    data = BlockwiseDataModule(source, spec, batch_size=20, augment=augment)
    data.decode()
    expected = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    splits = {split: images.pixels for split, images in data._decoded.items()}
    data._on_gpu, places = copy_to_device(list(splits.values()), CPU)
    data._places = dict(zip(splits, places, strict=True))
    actual = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    for (images, labels), (kept, same) in zip(expected, actual, strict=True):
        assert torch.equal(images, kept)
        assert torch.equal(labels, same)
    data.teardown()
    assert data.train_dataloader().dataset.pixels is splits["train"]


def test_both_ways_to_cut_are_the_same():
    pixels = torch.randint(256, (8, 3, 40, 40), dtype=torch.uint8)
    places = torch.randperm(8)[:5]
    draws = [(index, 7 - index, bool(index % 2)) for index in range(5)]
    expected = gather_rows(pixels[places], 32, draws)
    assert torch.equal(gather_pixels(pixels, 32, draws, places), expected)
    seeds = [3, 1, 4, 1, 5]
    plain = crop_and_flip(pixels[places], 32, ("crop", "flip"), seeds)
    assert torch.equal(crop_and_flip(pixels, 32, ("crop", "flip"), seeds, places), plain)


def test_numbers_keep_their_type():
    assert to_device([], CPU, torch.long).dtype == torch.long
    assert torch.equal(to_device([(1, 2, True)], CPU), torch.tensor([[1, 2, 1]]))
