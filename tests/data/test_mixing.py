import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from blockwise.data.mixing import Mix, draw_mix, mix_batch

SIDE = 12


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, SIDE, SIDE, generator=generator), torch.tensor([0, 2, 1, 1, 3])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_torchvisions(batch, share):
    images, labels = batch
    params = {"labels": labels, "batch_size": 5, "lam": share}
    theirs = v2.MixUp(num_classes=4)
    # torchvision mixes each image with the one before it
    mixed, probabilities = mix_batch(images, labels, [4, 0, 1, 2, 3], 4, Mix(share))
    assert torch.equal(mixed, theirs.transform(images, params))
    assert torch.equal(probabilities, theirs.transform(labels, params))


@pytest.mark.parametrize("box", [(2, 3, 7, 4), (0, 0, SIDE, SIDE), (5, 5, 5, 5)])
def test_cutmix_is_torchvisions(batch, box):
    images, labels = batch
    share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / SIDE**2
    params = {"labels": labels, "batch_size": 5, "box": box, "lam_adjusted": share}
    theirs = v2.CutMix(num_classes=4)
    mixed, probabilities = mix_batch(images, labels, [4, 0, 1, 2, 3], 4, Mix(share, box))
    assert torch.equal(mixed, theirs.transform(images, params))
    assert torch.equal(probabilities, theirs.transform(labels, params))


def test_partners_beyond_the_own_images_are_mixed_in_and_not_returned(batch):
    images, labels = batch
    before = images.clone()
    mixed, probabilities = mix_batch(images, labels, [4, 3], 4, Mix(0.25))
    assert torch.allclose(mixed, 0.25 * before[:2] + 0.75 * before[[4, 3]])
    assert probabilities.tolist() == [[0.25, 0, 0, 0.75], [0, 0.75, 0.25, 0]]
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_a_process_without_images_gets_no_labels(batch):
    images, labels = batch
    mixed, probabilities = mix_batch(images[:0], labels[:0], [], 4, Mix(0.5))
    assert mixed.shape == (0, 3, SIDE, SIDE)
    assert probabilities.shape == (0, 4)


def test_draws_repeat_with_the_seed_and_follow_the_beta_distribution():
    assert draw_mix(7, 0.2, 0, 32) == draw_mix(7, 0.2, 0, 32)
    shares = np.array([draw_mix(seed, 0.5, 0, 32).share for seed in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 0.125) < 0.01  # of Beta(0.5, 0.5)
    assert all(draw_mix(seed, 0.5, 0, 32).box is None for seed in range(20))


def test_boxes_lie_in_the_image_and_their_area_is_the_partners_share():
    for seed in range(300):
        mix = draw_mix(seed, 0, 1.0, 32)
        left, top, right, bottom = mix.box
        assert 0 <= left <= right <= 32
        assert 0 <= top <= bottom <= 32
        assert mix.share == 1 - (right - left) * (bottom - top) / 32**2


def test_with_both_on_each_batch_uses_one_of_them():
    cuts = sum(draw_mix(seed, 0.2, 1.0, 32).box is not None for seed in range(1000))
    assert 440 < cuts < 560
