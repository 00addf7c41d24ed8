import random
from itertools import chain, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from blockwise.data.augment import Augmentation, _draw, crop_and_flip, expand, gather_pixels, gather_rows
from blockwise.errors import InputError

V2 = "torchvision.transforms.v2"
MOVES = [*chain(*(permutations(("crop", "flip"), count) for count in (1, 2)))]


def one_by_one(pixels, size, names, seeds):
    """What torchvision makes of each image under its seed."""
    made = {"crop": v2.RandomCrop(size), "flip": v2.RandomHorizontalFlip()}
    transform = v2.Compose([*(made.get(name, name) for name in names), v2.CenterCrop(size)])
    images = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds, strict=True):
            torch.manual_seed(seed)
            images.append(transform(image))
    return torch.stack(images)


def noise(count, side, seed=0):
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Anything:
    """Draws from every generator there is."""

    def __call__(self, image):
        return image + int(10 * random.random()) + int(10 * np.random.rand()) + int(10 * torch.rand(()))


class Refuses:
    def __call__(self, image):
        raise RuntimeError("not today\nmore")


@given(
    st.integers(1, 12),
    st.integers(0, 9),
    st.sampled_from(MOVES),
    st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=6),
)
def test_crop_and_flip_are_those_of_torchvision_bit_by_bit(size, margin, names, seeds):
    pixels = noise(len(seeds), size + margin)
    expected = one_by_one(pixels, size, names, seeds)
    assert torch.equal(crop_and_flip(pixels, size, names, seeds), expected)
    assert torch.equal(Augmentation(names, size, size + margin)(pixels, seeds), expected)
    draws = [_draw(torch.Generator().manual_seed(seed), size + margin, size, names) for seed in seeds]
    for gather in (gather_rows, gather_pixels):
        assert torch.equal(gather(pixels, size, draws), expected)


def test_part_of_a_larger_tensor_is_gathered_too():
    pixels, seeds = noise(12, 10), [5, 6, 7]
    for part in (pixels[4:7], pixels[::4], pixels[:3].contiguous(memory_format=torch.channels_last)):
        assert torch.equal(
            crop_and_flip(part, 7, ["crop", "flip"], seeds), one_by_one(part, 7, ["crop", "flip"], seeds)
        )


@pytest.mark.parametrize("preset", ["trivialaugment", "randaugment", "colour"])
def test_presets_crop_flip_and_then_more(preset):
    pixels, seeds = noise(8, 20), list(range(8))
    elements = expand(preset)
    assert elements == ["crop", "flip", preset]
    images = Augmentation(elements, 16, 20)(pixels, seeds)
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert not torch.equal(images, Augmentation(expand("light"), 16, 20)(pixels, seeds))


def test_other_transforms_run_on_each_image_with_the_numbers_of_its_seed():
    pixels, seeds = noise(4, 20), [3, 1, 4, 1]
    jitter = {"_target_": f"{V2}.ColorJitter", "brightness": 0.4}
    images = Augmentation(["crop", jitter, "flip"], 16, 20)(pixels, seeds)
    assert torch.equal(images, one_by_one(pixels, 16, ["crop", v2.ColorJitter(brightness=0.4), "flip"], seeds))


def test_an_image_depends_on_its_seed_alone_whatever_generator_is_drawn_from():
    pixels, augment = noise(6, 20), Augmentation(["crop", Anything(), "trivialaugment"], 16, 20)
    together = augment(pixels, list(range(6)))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    alone = [augment(pixels[i : i + 1], [i])[0] for i in range(6)]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(augment(pixels, list(range(1, 7))), together)


def test_no_generator_is_changed():
    def draws():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        yield
        yield random.random(), np.random.rand(), torch.rand(()).item()

    untouched, touched = draws(), draws()
    next(untouched)
    expected = next(untouched)
    next(touched)
    Augmentation([Anything(), "flip"], 16, 20)(noise(2, 20), [1, 2])
    Augmentation(["flip"], 16, 20)(noise(2, 20), [1, 2])
    assert next(touched) == expected


def test_without_seeds_the_centre_is_cut_out():
    pixels = noise(3, 21)
    for elements in ([], ["crop", "flip"], [Anything()]):
        assert torch.equal(Augmentation(elements, 16, 21)(pixels, []), v2.functional.center_crop(pixels, [16, 16]))
    assert torch.equal(Augmentation([], 16, 21)(pixels, [1, 2, 3]), v2.functional.center_crop(pixels, [16, 16]))


@pytest.mark.parametrize(
    "elements",
    [
        [{"_target_": f"{V2}.RandomResizedCrop", "size": 16}],
        [v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(), v2.ToDtype(torch.uint8, scale=True)],
        [{"_target_": f"{V2}.RandomApply", "transforms": [{"_target_": f"{V2}.Grayscale", "num_output_channels": 3}]}],
        [{"_target_": f"{V2}.ColorJitter", "brightness": [0.5, 1.5]}],
        [{"_target_": f"{V2}.functional.adjust_gamma", "_partial_": True, "gamma": 2}],
        [v2.Resize(8), v2.Resize(20), "crop"],
        [v2.ToImage()],
    ],
)
def test_what_ends_in_an_image_is_taken(elements):
    images = Augmentation(elements, 16, 20)(noise(2, 20), [1, 2])
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ("rotate", "data.augment=rotate is unknown: choose from crop, flip"),
        ("colours", "Did you mean 'colour'"),
        ({"_target_": f"{V2}.ColourJitter"}, f"there is no {V2}.ColourJitter. Did you mean 'ColorJitter'?"),
        ({"_target_": "no_such_package.Blur"}, r"there is no no_such_package.Blur \(.*no_such_package"),
        ({"_target_": f"{V2}.GaussianBlur"}, r"GaussianBlur refuses its options \(.*kernel_size"),
        ({"_target_": f"{V2}.ColorJitter", "brightness": -1}, r"ColorJitter refuses its options \(.*negative"),
        ({"_target_": "torch.Generator"}, "torch.Generator is not a transform"),
        (["crop"], "list is not a transform"),
        (
            v2.ToDtype(torch.float32),
            r"ToDtype returns torch.float32 of shape \(3, 20, 20\), but must return uint8 images",
        ),
        (v2.Grayscale(), r"Grayscale returns torch.uint8 of shape \(1, 20, 20\)"),
        (v2.Resize(8), r"Resize returns torch.uint8 of shape \(3, 8, 8\), .* \(3, 16, 16\)"),
        (v2.ToPILImage(), "ToPILImage returns an object of type Image"),
        (v2.RandomCrop(99), r"RandomCrop fails \(Required crop size"),
        (Refuses(), r"Refuses fails \(not today\)"),
    ],
)
def test_what_makes_no_image_is_refused_before_training(element, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        Augmentation([element], 16, 20)
    assert "\n" not in str(caught.value)


def test_what_makes_no_image_later_is_refused_then():
    augment = Augmentation([v2.RandomApply([v2.ToDtype(torch.float32)], p=0.3)], 16, 20)
    with pytest.raises(InputError, match="RandomApply returns torch.float32"):
        augment(noise(32, 20), list(range(32)))


def test_a_name_is_given_once():
    with pytest.raises(InputError, match="data.augment lists flip twice"):
        Augmentation(["flip", "crop", "flip"], 16, 20)


def test_images_smaller_than_the_network_wants_are_padded_as_before():
    pixels, seeds = noise(4, 13), [1, 2, 3, 4]
    assert torch.equal(Augmentation(["flip"], 16, 13)(pixels, seeds), one_by_one(pixels, 16, ["flip"], seeds))


@pytest.mark.parametrize(
    ("code", "message"), [("import no_such_thing", "No module named 'no_such_thing'"), ("x = (", "never closed")]
)
def test_a_module_of_ones_own_that_cannot_be_imported_is_named_with_the_reason(code, message, tmp_path, monkeypatch):
    (tmp_path / "own_transforms_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"there is no own_transforms_broken.Blur .*{message}"):
        Augmentation([{"_target_": "own_transforms_broken.Blur"}], 16, 20)


def test_a_class_of_ones_own_is_taken(tmp_path, monkeypatch):
    (tmp_path / "own_transforms.py").write_text(
        "class Darker:\n"
        "    def __init__(self, factor):\n"
        "        self.factor = factor\n"
        "    def __call__(self, image):\n"
        "        return image // self.factor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pixels = noise(2, 16)
    darker = Augmentation([{"_target_": "own_transforms.Darker", "factor": 2}], 16, 16)(pixels, [1, 2])
    assert torch.equal(darker, pixels // 2)
