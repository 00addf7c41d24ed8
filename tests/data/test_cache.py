import os
import warnings

import numpy as np
import pytest
from PIL import Image

from blockwise.data import cache as module
from blockwise.data.cache import PixelCache
from blockwise.data.decode import decode_all
from blockwise.data.samples import Sample


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), np.uint8)).save(path)
        made.append(Sample(path.name, index % 2, path))
    return made


@pytest.fixture
def decodings(monkeypatch):
    """The number of images decoded in each call."""
    counts = []

    def counting(samples, *rest):
        counts.append(len(samples))
        return decode_all(samples, *rest)

    monkeypatch.setattr(module, "decode_all", counting)
    return counts


def decode(cache, samples, fingerprint="content", size=8, interpolation="bilinear"):
    reported = []
    pixels, broken = cache.decode(samples, fingerprint, size, interpolation, lambda: reported.append(1))
    assert len(reported) == len(samples)
    return pixels, broken


def test_the_pixels_are_those_of_decoding_and_the_second_time_nothing_is_decoded(samples, decodings, tmp_path):
    expected, _ = decode_all(samples, 8, "bilinear", lambda: None)
    for _ in range(2):
        pixels, broken = decode(PixelCache(tmp_path / "cache", 10**6), samples)
        assert np.array_equal(pixels, expected)
        assert not broken
    assert decodings == [5]
    assert isinstance(pixels, np.memmap)
    assert not pixels.flags.writeable


@pytest.mark.parametrize(
    "change", [{"fingerprint": "other"}, {"size": 9}, {"interpolation": "bicubic"}, {"samples": slice(0, 4)}]
)
def test_whatever_decides_the_pixels_decides_the_file(samples, decodings, tmp_path, change):
    cache = PixelCache(tmp_path / "cache", 10**6)
    decode(cache, samples)
    part = samples[change.pop("samples", slice(None))]
    pixels, _ = decode(cache, part, **change)
    assert decodings == [5, len(part)]
    assert pixels.shape == (len(part), 3, change.get("size", 8), change.get("size", 8))


def test_it_stays_within_its_bound_and_drops_what_was_used_longest_ago(samples, decodings, tmp_path):
    cache = PixelCache(tmp_path / "cache", 2500)  # room for two splits of 5 x 3 x 8 x 8 bytes and their headers
    for age, fingerprint in ((30, "a"), (20, "b")):
        decode(cache, samples, fingerprint)
        newest = max(cache.folder.glob("*.npy"), key=os.path.getmtime)
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    decode(cache, samples, "a")  # use a again: now b is the least recently used
    decode(cache, samples, "c")
    assert sum(file.stat().st_size for file in cache.folder.glob("*.npy")) <= 2500
    del decodings[:]
    decode(cache, samples, "a")
    assert not decodings
    decode(cache, samples, "b")
    assert decodings == [5]


def test_what_does_not_fit_is_not_kept(samples, tmp_path):
    cache = PixelCache(tmp_path / "cache", 100)
    assert decode(cache, samples)[0].shape == (5, 3, 8, 8)
    assert not list(tmp_path.glob("cache/*.npy"))


def test_broken_images_are_named_each_time(samples, decodings, tmp_path):
    samples[3].image.write_bytes(b"no image")
    cache = PixelCache(tmp_path / "cache", 10**6)
    for _ in range(2):
        assert list(decode(cache, samples)[1]) == [3]
    assert decodings == [5, 5]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_made_anew(samples, decodings, tmp_path, content):
    cache = PixelCache(tmp_path / "cache", 10**6)
    expected, _ = decode(cache, samples)
    (file,) = cache.folder.glob("*.npy")
    file.write_bytes(content)
    assert np.array_equal(decode(cache, samples)[0], expected)
    assert np.array_equal(decode(cache, samples)[0], expected)
    assert decodings == [5, 5]


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_run(samples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot cache decoded images in"):
        pixels, _ = decode(PixelCache(tmp_path / "file" / "cache", 10**6), samples)
    assert len(pixels) == 5


def test_images_in_memory_need_no_cache(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(PixelCache(tmp_path / "cache", 10**6), [Sample("a", 0, np.zeros((9, 9), np.uint8))])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["archive", "text", "nothing", "array of objects"])
def test_a_file_of_the_cache_that_is_something_else_is_written_anew(samples, decodings, tmp_path, content):
    cache = PixelCache(tmp_path / "cache", 10**6)
    expected, _ = decode(cache, samples)
    (path,) = (tmp_path / "cache").glob("*.npy")
    with path.open("wb") as file:
        if content == "archive":
            np.savez(file, a=np.zeros(3))
        elif content == "array of objects":
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        elif content == "text":
            file.write(b"PK no archive")
    pixels, _ = decode(cache, samples)
    assert np.array_equal(pixels, expected)
    assert decodings == [5, 5]
