from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from blockwise.backbone.load import ImageSpec
from blockwise.data import BlockwiseDataModule, Sample, Source, Splits
from blockwise.data.datamodule import normalise
from blockwise.data.pixels import on_demand
from blockwise.data.pixels.cache import PixelCache
from blockwise.data.sources.digits import Digits
from blockwise.errors import InputError

SPEC = ImageSpec(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=0.8)


class Fake(Source):
    """Images whose pixels all equal their index."""

    name = "fake"

    def __init__(self, sizes=(33, 10, 10), classes=2, broken=()):
        self.sizes, self.classes, self.broken = sizes, classes, broken

    def splits(self):
        parts, number = [], 0
        for size in self.sizes:
            part = []
            for _ in range(size):
                image = Path("missing.jpg") if number in self.broken else np.full((20, 20), number, np.uint8)
                part.append(Sample(f"{number:03d}", number % self.classes, image))
                number += 1
            parts.append(tuple(part))
        return Splits(tuple(map(str, range(self.classes))), *parts, "fingerprint")


def module(source=None, **options):
    made = BlockwiseDataModule(source or Fake(), SPEC, **{"batch_size": 8, **options})
    made.setup("fit")
    return made


def epochs(data, count):
    """The indices of the images in each batch of `count` training epochs."""
    loader = data.train_dataloader()
    return [[batch[0][:, 0, 0, 0].tolist() for batch in loader] for _ in range(count)]


def epoch(data):
    return epochs(data, 1)[0]


def test_every_image_once_an_epoch_in_another_order_each_time():
    data = module(Fake((32, 10, 10)))
    first, second = epochs(data, 2)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(32))
    assert first != second


def test_the_same_seed_gives_the_same_batches_however_many_workers():
    reference = epochs(module(seed=3), 3)
    assert epochs(module(seed=3, num_workers=1), 3) == reference
    assert epochs(module(seed=4), 3) != reference


def test_a_second_fit_begins_again():
    data = module()
    assert epochs(data, 3) == epochs(data, 3)


def test_a_remainder_of_one_is_left_out_since_batch_norm_needs_two():
    assert [len(batch) for batch in epoch(module(Fake((33, 4, 4))))] == [8, 8, 8, 8]
    assert [len(batch) for batch in epoch(module(Fake((34, 4, 4))))] == [8, 8, 8, 8, 2]


def test_evaluation_keeps_order_and_crops_the_centre():
    data = module()
    numbers = [int(n) for batch in data.val_dataloader() for n in batch[0][:, 0, 0, 0]]
    assert numbers == list(range(33, 43))
    images, labels = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert images.shape == (8, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [n % 2 for n in range(33, 41)]
    assert torch.allclose(
        images[0, :, 0, 0], (torch.full((3,), 33 / 255) - torch.tensor(SPEC.mean)) / torch.tensor(SPEC.std)
    )


def test_augmentation_is_random_and_repeats_with_the_seed():
    def batches(seed):
        data = BlockwiseDataModule(Digits(seed=0), SPEC, batch_size=16, augment=["crop", "flip"], seed=seed)
        data.setup("fit")
        return [data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()]

    one, again, other = batches(0), batches(0), batches(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_without_augmentation_training_sees_what_evaluation_sees():
    data = module(augment=[])
    pixels, labels, seeds = next(iter(data.train_dataloader()))
    training = data.on_after_batch_transfer((pixels, labels, seeds), 0)[0]
    assert torch.equal(training, data.on_after_batch_transfer((pixels, labels, []), 0)[0])


def digits(**options):
    made = BlockwiseDataModule(Digits(seed=0), SPEC, **{"batch_size": 15, "augment": "light", **options})
    made.setup("fit")
    return made


def training_batches(data):
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def test_light_is_the_default_and_none_is_the_empty_list():
    assert module().augment == module(augment="light").augment == ("crop", "flip")
    assert module(augment="none").augment == ()
    assert module(augment="flip").augment == ("flip",)


@pytest.mark.parametrize(
    "options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "augment": "colour"}]
)
def test_processes_that_share_a_batch_train_on_the_same_mixed_images(options, monkeypatch):
    whole = training_batches(digits(**options))
    assert whole[0][1].shape == (15, 10)
    assert whole[0][1].dtype == torch.float32
    assert torch.allclose(whole[0][1].sum(1), torch.ones(15))
    for part in range(2):
        data = digits(**options)
        monkeypatch.setattr(data, "part", lambda part=part: (part, 2))
        for (images, labels), (own_images, own_labels) in zip(whole, training_batches(data), strict=True):
            assert torch.equal(own_images, images[part::2])
            assert torch.equal(own_labels, labels[part::2])


def test_partners_are_augmented_with_their_own_seeds():
    plain, mixed = digits(), digits(mixup=1.0)
    for (images, labels), (blended, probabilities) in zip(
        training_batches(plain), training_batches(mixed), strict=True
    ):
        pair = labels.unsqueeze(1), labels.flip(0).unsqueeze(1)
        differ = labels != labels.flip(0)
        share = probabilities.gather(1, pair[0])[differ][0].item()
        assert torch.allclose(probabilities.gather(1, pair[1])[differ], torch.tensor(1 - share))
        assert torch.allclose(blended, share * images + (1 - share) * images.flip(0), atol=1e-6)


def test_mixing_resumes_and_is_the_same_with_workers():
    whole = training_batches(digits(mixup=0.4, cutmix=0.4))
    resumed = digits(mixup=0.4, cutmix=0.4, num_workers=1)
    resumed.load_state_dict({"epoch": 0, "batch": 3})
    for one, other in zip(whole[3:], training_batches(resumed), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_only_training_batches_are_mixed():
    data = digits(mixup=0.4)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert data.on_after_batch_transfer(next(iter(loader)), 0)[1].dtype == torch.int64
    assert training_batches(digits())[0][1].dtype == torch.int64


def test_balanced_epochs_are_as_long_and_draw_with_replacement():
    data = module(sampler="balanced")
    numbers = list(chain(*epoch(data)))
    assert len(numbers) == 32
    assert len(set(numbers)) < 32


def test_normalise_agrees_with_torchvision():
    from torchvision.transforms.v2.functional import normalize, to_dtype

    pixels = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    expected = normalize(to_dtype(pixels, torch.float32, scale=True), SPEC.mean, SPEC.std)
    assert torch.allclose(normalise(pixels, SPEC), expected, atol=1e-6)


def test_broken_images_are_named_before_training():
    with pytest.raises(InputError, match=r"2 image\(s\) cannot be read: 004 .*; 035 .*data.skip_broken=true"):
        module(Fake(broken=(4, 35)))


def test_broken_images_can_be_left_out():
    data = module(Fake(broken=(4, 35)), skip_broken=True)
    assert data.skipped == ["004", "035"]
    assert data.counts() == {"train": 32, "val": 9, "test": 10}
    assert 4 not in chain(*epoch(data))


def test_too_few_left_is_an_error():
    with pytest.raises(InputError, match="only 6 readable images are left in train"):
        module(Fake((10, 4, 4), broken=(0, 1, 2, 3)), skip_broken=True)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            Fake((20, 4, 4)),
            {"batch_size": 21},
            "data.batch_size=21 does not fit the 20 training images of fake: choose 2",
        ),
        (Fake((20, 4, 4)), {"batch_size": 1}, "data.batch_size=1 does not fit"),
        (Fake((20, 0, 4)), {}, "fake has no images in its val split"),
        (Fake(classes=1), {}, "only one class"),
        (Fake(), {"augment": ["rotate"]}, "data.augment=rotate is unknown"),
        (Fake(), {"augment": "rotate"}, "data.augment=rotate is unknown"),
        (Fake(), {"mixup": -1}, "data.mixup=-1.0 must be a number of at least 0"),
        (Fake(), {"cutmix": float("nan")}, "data.cutmix=nan must be a number of at least 0"),
        (Fake(), {"sampler": "balance"}, r"data.sampler=balance is unknown: .*Did you mean 'balanced'\?"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(source, options, message):
    with pytest.raises(InputError, match=message):
        module(source, **options)


class Files(Source):
    """Random images in files; one of them is broken."""

    name = "files"

    def __init__(self, folder):
        random = np.random.default_rng(0)
        self.samples = []
        for number in range(40):
            path = folder / f"{number:02d}.png"
            Image.fromarray(random.integers(0, 256, (24, 30, 3), np.uint8)).save(path)
            self.samples.append(Sample(path.name, number % 2, path))
        self.samples[5].image.write_bytes(b"no image")

    def splits(self):
        return Splits(("0", "1"), *(tuple(self.samples[part]) for part in PARTS), "fingerprint")


PARTS = slice(0, 20), slice(20, 30), slice(30, 40)
ROOM = 40 * 3 * 20**2  # bytes of the decoded images


@pytest.mark.parametrize("cache", [ROOM - 1, None])
def test_images_that_fit_nowhere_are_decoded_as_they_are_read(tmp_path, monkeypatch, cache):
    source = Files(tmp_path)
    cached = module(source, skip_broken=True, cache=PixelCache(tmp_path / "cache", ROOM))
    assert cached.notice() is None
    assert cached.train_dataloader().num_workers == 0
    monkeypatch.setattr(on_demand, "MOST_IN_MEMORY", ROOM - 1)
    read = BlockwiseDataModule(
        source, SPEC, batch_size=8, skip_broken=True, cache=cache and PixelCache(tmp_path / "cache", cache)
    )
    setting = "cache.max_gb=1 to" if cache else "cache.folder"
    assert setting in read.notice()
    assert f"by {on_demand.usual_workers(1)} worker processes" in read.notice()
    read.setup("fit")
    assert read.notice() is None
    assert read.skipped == cached.skipped == ["05.png"]
    assert read.class_counts() == cached.class_counts()
    assert read.train_dataloader().num_workers == on_demand.usual_workers(1)
    for one, other in zip(batches_of(cached), batches_of(read), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches_of(data):
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [data.on_after_batch_transfer(batch, 0) for loader in loaders for batch in loader]


def test_images_from_functions_are_cached_however_large_they_are(tmp_path, monkeypatch):
    files = Files(tmp_path)
    files.samples = [replace(sample, image=sample.image.read_bytes) for sample in files.samples]
    monkeypatch.setattr(on_demand, "MOST_IN_MEMORY", 0)
    data = module(files, skip_broken=True, cache=PixelCache(tmp_path / "cache", ROOM))
    assert (data.notice(), data.on_demand) == (None, False)
    assert data.train_dataloader().num_workers == 0
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 2  # the split with the broken image is not complete


def test_with_folds_joined_images_take_their_room_once(tmp_path):
    files = Files(tmp_path)
    files.samples[5] = files.samples[6]
    for room, on_demand_ in ((ROOM, False), (ROOM - 1, True)):
        data = BlockwiseDataModule(files, SPEC, batch_size=8, folds=2, cache=PixelCache(tmp_path / "cache", room))
        assert data.on_demand is on_demand_


def test_images_that_fit_nowhere_are_checked_before_training(tmp_path):
    data = BlockwiseDataModule(Files(tmp_path), SPEC, batch_size=8, cache=PixelCache(tmp_path / "cache", 1))
    with pytest.raises(InputError, match=r"1 image\(s\) cannot be read: 05.png"):
        data.setup("fit")


def test_pixels_that_are_given_need_no_cache(tmp_path):
    assert module(cache=PixelCache(tmp_path / "cache", 1)).train_dataloader().num_workers == 0


def test_little_shared_memory_means_few_workers(monkeypatch):
    monkeypatch.setattr(on_demand.os, "sched_getaffinity", lambda _: range(6), raising=False)
    for free, workers in ((10**12, 6), (40 * 10**6, 4), (10**3, 1)):
        monkeypatch.setattr(on_demand.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(on_demand.Path, "is_dir", lambda _: True)
        assert on_demand.usual_workers(10**6) == workers
