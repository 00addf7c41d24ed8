"""Folds: every image is held out once, each class alike, and images of a group together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.backbone.load import ImageSpec
from blockwise.data import BlockwiseDataModule, Digits
from blockwise.data.batches import ShuffledBatches
from blockwise.data.folds import assign_folds, check_apart
from blockwise.data.samples import Sample, group_of, split_by_seed
from blockwise.errors import InputError

PIXELS = np.zeros((2, 2), np.uint8)
SPEC = ImageSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)


def samples(*counts, name="{label}/{number}"):
    return [Sample(name.format(label=k, number=n), k, PIXELS) for k, count in enumerate(counts) for n in range(count)]


@given(st.lists(st.integers(5, 30), min_size=2, max_size=4), st.integers(2, 5), st.integers(0, 3))
def test_every_fold_has_the_same_share_of_each_class(counts, folds, seed):
    images = samples(*counts)
    fold_of = assign_folds(images, [str(k) for k in range(len(counts))], folds, seed)
    labels = np.array([sample.label for sample in images])
    assert np.ptp(np.bincount(fold_of, minlength=folds)) <= 1
    for label in range(len(counts)):
        assert np.ptp(np.bincount(fold_of[labels == label], minlength=folds)) <= 1


def test_the_order_of_the_images_does_not_matter_but_the_seed_does():
    images = samples(20, 20)
    first = assign_folds(images, "ab", 4, 0)
    assert np.array_equal(assign_folds(images[::-1], "ab", 4, 0)[::-1], first)
    assert not np.array_equal(assign_folds(images, "ab", 4, 1), first)


def test_a_group_is_never_divided():
    images = [Sample(f"{k}/animal{n // 3:02}-{n % 3}", k, PIXELS) for k in range(3) for n in range(30)]
    fold_of = assign_folds(images, "abc", 5, 0, r"^(\d)/animal(\d+)")
    for start in range(0, len(images), 3):
        assert len(set(fold_of[start : start + 3])) == 1
    assert np.bincount(fold_of).tolist() == [18] * 5
    labels = np.array([sample.label for sample in images])
    assert all(np.bincount(fold_of[labels == label], minlength=5).tolist() == [6] * 5 for label in range(3))


def test_a_group_does_not_both_train_and_test():
    images = [Sample(f"{k}/animal{n // 3:02}-{n % 3}", k, PIXELS) for k in range(2) for n in range(31)]
    groups = r"^(\d)/animal(\d+)"
    sizes = {"train_per_class": None, "val_per_class": None, "test_per_class": None}
    splits = split_by_seed(images, "ab", **sizes, seed=0, groups=groups)
    trained, tested = ({group_of(s.name, groups) for s in part} for part in (splits.train + splits.val, splits.test))
    assert not trained & tested
    assert len(splits.train + splits.val) == 48
    assert {sample.label for sample in splits.test} == {0, 1}
    check_apart(splits.train + splits.val, splits.test, groups)
    with pytest.raises(InputError, match="test images are of groups that train as well, such as 0/animal00-2"):
        check_apart(images[:2], images[2:], groups)
    with pytest.raises(InputError, match="leaves no images of class 'a' to test: all of its groups train as well"):
        split_by_seed(images, "ab", **sizes, seed=0, groups=r"^\d")


@pytest.mark.parametrize(
    ("counts", "folds", "groups", "sentence"),
    [
        (
            (9, 4),
            5,
            None,
            "data.folds=5 is too many: class 'b' has 4 images to train and to validate, so choose 2 to 4",
        ),
        ((9, 4), 3, "^x", "data.groups=^x does not fit the image 0/0"),
        ((9, 4), 3, r"^\d", "data.folds=3 is too many: data.groups=^\\d finds 2 groups"),
        ((9, 4), 2, r"^\d", "all images of class 'a' are in one group"),
    ],
)
def test_what_cannot_be_divided(counts, folds, groups, sentence):
    with pytest.raises(InputError) as raised:
        assign_folds(samples(*counts), "ab", folds, 0, groups)
    assert sentence in str(raised.value)


def test_folds_take_turns_in_training_batches():
    fold_of = np.arange(40) % 4
    batches = list(ShuffledBatches(40, 8, 0, fold_of=fold_of))
    assert sorted(position for batch in batches for position in batch.positions) == list(range(40))
    for batch in batches:
        assert np.bincount(fold_of[batch.positions]).tolist() == [2] * 4


def test_a_data_module_joins_and_divides():
    source = Digits(train_per_class=8, val_per_class=2, test_per_class=3)
    plain, data = BlockwiseDataModule(source, SPEC), BlockwiseDataModule(source, SPEC, folds=4, batch_size=20)
    data.decode()
    names = {sample.name for split in ("train", "val") for sample in getattr(plain.splits, split)}
    assert {sample.name for sample in data.splits.train} == names
    assert data.splits.val == data.splits.train
    assert data.joined == (60, 20)
    assert data.counts() == {"train": 80, "val": 80, "test": 30}
    folds = [
        fold for _, _, folds in map(data.on_after_batch_transfer, data.val_dataloader(), [0] * 4) for fold in folds
    ]
    assert folds == data._fold_of.tolist()
    assert all(len(data.on_after_batch_transfer(batch, 0)) == 2 for batch in data.test_dataloader())


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixed_images_would_cross_folds(key):
    with pytest.raises(InputError, match=f"data.folds=2 cannot be combined with data.{key}"):
        BlockwiseDataModule(Digits(train_per_class=8, val_per_class=2), SPEC, folds=2, **{key: 0.3})
