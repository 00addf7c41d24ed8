from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwise.data.samples import Sample, cap, fingerprint, split_by_seed
from blockwise.errors import InputError

PIXELS = np.zeros((2, 2), np.uint8)
CLASSES = ["a", "b", "c"]
SAMPLES = [Sample(f"{name}/{i:03d}", label, PIXELS) for label, name in enumerate(CLASSES) for i in range(20)]


def split(samples=SAMPLES, seed=0, train=10, val=3, test=5):
    return split_by_seed(samples, CLASSES, train_per_class=train, val_per_class=val, test_per_class=test, seed=seed)


def names(part):
    return [sample.name for sample in part]


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_a_split_depends_on_names_and_seed_alone(random, seed):
    shuffled = list(SAMPLES)
    random.shuffle(shuffled)
    assert split(shuffled, seed) == split(SAMPLES, seed)


@given(st.integers(2, 19), st.data())
def test_splits_are_disjoint_and_of_the_size_asked_for(train, data):
    val, test = data.draw(st.integers(1, train - 1)), data.draw(st.integers(1, 30))
    found = split(train=train, val=val, test=test)
    everything = names(found.train) + names(found.val) + names(found.test)
    assert len(set(everything)) == len(everything)
    for part, size in ((found.train, train - val), (found.val, val), (found.test, min(test, 20 - train))):
        assert Counter(sample.label for sample in part) == dict.fromkeys(range(3), size)


def test_another_seed_another_split():
    assert names(split(seed=0).train) != names(split(seed=1).train)


def test_without_numbers_sixty_twenty_twenty():
    found = split(train=None, val=None, test=None)
    assert [len(part) for part in (found.train, found.val, found.test)] == [36, 12, 12]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train": 20},
            "data.train_per_class=20 leaves no test images: class 'a' has 20 images, so choose at most 19",
        ),
        ({"val": 10}, "data.val_per_class=10 does not fit data.train_per_class=10"),
        ({"val": 0}, "data.val_per_class=0 does not fit"),
    ],
)
def test_splits_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        split(**sizes)


def test_cap_keeps_the_same_few_whatever_the_order():
    assert len(cap(SAMPLES, 4, 0)) == 12
    assert cap(SAMPLES, 4, 0) == cap(SAMPLES[::-1], 4, 0)
    assert cap(SAMPLES, None, 0) == tuple(SAMPLES)


def test_the_fingerprint_tells_data_sets_apart():
    one = split().fingerprint
    assert one == split(seed=1, train=5).fingerprint == split(SAMPLES[::-1]).fingerprint
    swapped = [Sample(s.name, s.label, PIXELS + (s.name == "a/003")) for s in SAMPLES]
    assert one != split(swapped).fingerprint


def test_the_fingerprint_follows_the_content_of_files(tmp_path):
    path = tmp_path / "x.png"
    marks = []
    for content in (b"same length", b"SAME LENGTH", None):
        path.unlink() if content is None else path.write_bytes(content)
        marks.append(fingerprint([Sample("x.png", 0, path)]))
    assert len(set(marks)) == 3
