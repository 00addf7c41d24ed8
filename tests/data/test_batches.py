import numpy as np
import pytest
import torch

from blockwise.data.batches import ShuffledBatches, balancing_weights

LABELS = np.array([0] * 60 + [1] * 6 + [2] * 30)


def balanced(**options):
    return ShuffledBatches(len(LABELS), 16, 3, weights=balancing_weights(LABELS), **options)


def drawn(draws):
    return LABELS[[position for draw in draws for position in draw.positions]]


def test_balanced_batches_draw_every_class_equally_often():
    batches = balanced()
    counts = np.bincount(np.concatenate([drawn(batches) for _ in range(100)]))
    assert counts.sum() == 100 * len(LABELS)
    assert np.allclose(counts / counts.sum(), 1 / 3, atol=0.02)


def test_balanced_epochs_differ_and_repeat_with_the_seed():
    batches = balanced()
    first, second = list(batches), list(batches)
    assert list(balanced()) == first
    assert first != second


@pytest.mark.parametrize("options", [{}, {"mix": True}])
def test_balanced_batches_resume_anywhere(options):
    whole = balanced(**options)
    epochs = [list(whole) for _ in range(3)]
    resumed = balanced(**options, resume_at=(1, 4))
    assert list(resumed) == epochs[1][4:]
    assert list(resumed) == epochs[2]


def test_processes_share_balanced_batches():
    whole, parts = list(balanced()), [list(balanced(part=part, parts=2)) for part in range(2)]
    for batch, one, two in zip(whole, *parts, strict=True):
        assert (one.positions, two.positions) == (batch.positions[::2], batch.positions[1::2])
        assert (one.seeds, two.seeds) == (batch.seeds[::2], batch.seeds[1::2])


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_partners_are_those_of_the_whole_batch(parts):
    plain = list(ShuffledBatches(17, 5, 0))
    for part in range(parts):
        mixing = list(ShuffledBatches(17, 5, 0, part, parts, mix=True))
        for batch, draw in zip(plain, mixing, strict=True):
            own = list(range(len(batch.positions)))[part::parts]
            assert draw.positions[: len(own)] == batch.positions[part::parts]
            for index, partner in zip(own, draw.partners, strict=True):
                opposite = len(batch.positions) - 1 - index
                assert draw.positions[partner] == batch.positions[opposite]
                assert draw.seeds[partner] == batch.seeds[opposite]
            assert len(set(draw.positions)) == len(draw.positions) <= min(2 * len(own), len(batch.positions))


def test_the_seed_of_mixing_is_that_of_epoch_and_batch_in_every_process():
    one = ShuffledBatches(20, 5, 0, mix=True)
    two = ShuffledBatches(20, 5, 0, 1, 2, mix=True)
    seeds = [[draw.mix_seed for _ in range(2) for draw in batches] for batches in (one, two)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 8


def test_mixing_changes_neither_order_nor_augmentation():
    plain, mixed = ShuffledBatches(20, 5, 0), ShuffledBatches(20, 5, 0, mix=True)
    for one, other in zip(plain, mixed, strict=True):
        assert (one.positions, one.seeds) == (other.positions, other.seeds)
        assert (one.partners, one.mix_seed) == ((), None)


def test_weights_are_one_number_per_image():
    assert torch.equal(balancing_weights(np.array([1, 0, 1])), torch.tensor([0.5, 1, 0.5], dtype=torch.float64))
