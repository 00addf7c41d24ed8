import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from blockwise.data.decode import CHUNK, decode_all, decode_chunks
from blockwise.data.pixels import seen as module
from blockwise.data.pixels.cache import PixelCache
from blockwise.data.pixels.file import PixelFile
from blockwise.data.samples import Sample


@pytest.fixture
def samples(tmp_path):
    return make_samples(tmp_path, 5)


def make_samples(folder, count):
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), np.uint8)).save(path)
        made.append(Sample(path.name, index % 2, path))
    return made


@pytest.fixture
def decodings(monkeypatch):
    """The number of images decoded in each call that decodes any."""
    counts = []

    def counting(samples, indices, *rest):
        counts.append(len(indices))
        return decode_chunks(samples, indices, *rest)

    monkeypatch.setattr(module, "decode_chunks", counting)
    return counts


def everything(pixels):
    return pixels[range(len(pixels))]


def decode(cache, samples, fingerprint="content", size=8, interpolation="bilinear"):
    reported = []
    pixels, broken = cache.decode(samples, fingerprint, size, interpolation, lambda: reported.append(1))
    assert len(reported) == len(samples)
    return pixels, broken


def test_the_pixels_are_those_of_decoding_and_the_second_time_nothing_is_decoded(samples, decodings, tmp_path):
    expected, _ = decode_all(samples, 8, "bilinear", lambda: None)
    for _ in range(2):
        pixels, broken = decode(PixelCache(tmp_path / "cache", 10**6), samples)
        assert np.array_equal(everything(pixels), expected)
        assert np.array_equal(pixels[[3, 0, 3]], expected[[3, 0, 3]])
        assert not broken
    assert decodings == [5]
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert np.array_equal(np.load(file), expected)
    assert [path.suffix for path in sorted(file.parent.iterdir())] == [".lock", ".npy"]


def test_a_file_goes_to_worker_processes_by_its_name(samples, tmp_path):
    pixels, _ = decode(PixelCache(tmp_path / "cache", 10**6), samples)
    assert isinstance(pixels, PixelFile)
    sent = pickle.dumps(pixels)
    assert len(sent) < 1000
    assert np.array_equal(everything(pickle.loads(sent)), everything(pixels))


def test_a_run_reads_on_what_another_deletes(samples, tmp_path):
    pixels, _ = decode(PixelCache(tmp_path / "cache", 1100), samples)
    before = everything(pixels)
    decode(PixelCache(tmp_path / "cache", 1100), samples, "other")
    assert not pixels.path.exists()
    assert np.array_equal(everything(pixels), before)


def test_interrupted_decoding_goes_on_where_it_was(decodings, tmp_path):
    samples = make_samples(tmp_path, 3 * CHUNK)
    cache = PixelCache(tmp_path / "cache", 10**6)
    reported = []

    def interrupt():
        reported.append(1)
        if len(reported) == CHUNK + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.decode(samples, "content", 8, "bilinear", interrupt)
    assert not list(cache.folder.glob("*.npy"))
    pixels, broken = decode(cache, samples)
    assert not broken
    assert np.array_equal(everything(pixels), decode_all(samples, 8, "bilinear", lambda: None)[0])
    assert decodings[1] <= 2 * CHUNK
    assert not [path for path in cache.folder.iterdir() if path.suffix in (".partial", ".seen")]


KILLED = """
import os, sys
from pathlib import Path
from blockwise.data.pixels.cache import PixelCache
from blockwise.data.pixels import seen
from blockwise.data.samples import Sample
seen.SECONDS_BETWEEN_SAVES = 0
folder, count, done = Path(sys.argv[1]), int(sys.argv[2]), []
samples = [Sample(f"{i}.png", i % 2, folder / f"{i}.png") for i in range(count)]
def report():
    done.append(1)
    if len(done) == 2 * count // 3:
        os.kill(os.getpid(), 9)
PixelCache(folder / "cache", 10**6).decode(samples, "content", 8, "bilinear", report)
"""


@pytest.mark.slow
def test_killed_decoding_goes_on_where_it_was(decodings, tmp_path):
    samples = make_samples(tmp_path, 6 * CHUNK)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(len(samples))])
    assert killed.returncode == -signal.SIGKILL
    pixels, _ = decode(PixelCache(tmp_path / "cache", 10**6), samples)
    assert np.array_equal(everything(pixels), decode_all(samples, 8, "bilinear", lambda: None)[0])
    assert 0 < decodings[0] < 4 * CHUNK


def test_flags_without_their_pixels_are_not_believed(samples, decodings, tmp_path):
    cache = PixelCache(tmp_path / "cache", 10**6)
    samples[3].image.write_bytes(b"no image")
    decode(cache, samples)
    (partial,) = cache.folder.glob("*.partial")
    partial.unlink()
    pixels, _ = decode(cache, samples)
    assert decodings == [5, 5]
    assert pixels[[0, 1, 2, 4]].any((1, 2, 3)).all()


def test_a_full_disk_costs_the_cache_and_not_the_run(samples, tmp_path, monkeypatch):
    cache = PixelCache(tmp_path / "cache", 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.warns(UserWarning, match="cannot cache decoded images in .* .No space left on device"):
        pixels, _ = decode(cache, samples)
    assert len(pixels) == 5


def test_a_disk_that_fills_up_meanwhile_is_freed(samples, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PixelFile, "write", fail)
    with pytest.warns(UserWarning, match="No space left on device"):
        pixels, _ = PixelCache(tmp_path / "cache", 10**6).decode(samples, "content", 8, "bilinear", lambda: None)
    assert np.array_equal(pixels, decode_all(samples, 8, "bilinear", lambda: None)[0])
    assert not list(tmp_path.glob("cache/*.partial"))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    (sample,) = make_samples(tmp_path, 1)
    samples = [sample] * 400
    for cache in (PixelCache(tmp_path / "cache", 10**8), PixelCache(tmp_path / "small", 1)):
        tracemalloc.start()
        if cache.max_bytes > 1:
            pixels, _ = decode(cache, samples, size=128)
            pixels[range(0, 400, 20)]
        else:
            cache.check(samples, "content", 128, "bilinear", lambda: None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5e6  # all of them are 20 MB


def test_images_are_checked_once(samples, decodings, tmp_path):
    cache = PixelCache(tmp_path / "cache", 100)
    samples[3].image.write_bytes(b"no image")
    for _ in range(2):
        assert list(cache.check(samples, "content", 8, "bilinear", lambda: None)) == [3]
    assert decodings == [5, 1]


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
        pixels, broken = decode(cache, samples)
        assert list(broken) == [3]
    assert decodings == [5, 1]  # the broken one is tried again
    good = [0, 1, 2, 4]
    assert np.array_equal(pixels[good], decode_all(samples, 8, "bilinear", lambda: None)[0][good])


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_made_anew(samples, decodings, tmp_path, content):
    cache = PixelCache(tmp_path / "cache", 10**6)
    expected = everything(decode(cache, samples)[0])
    (file,) = cache.folder.glob("*.npy")
    file.write_bytes(content)
    assert np.array_equal(everything(decode(cache, samples)[0]), expected)
    assert np.array_equal(everything(decode(cache, samples)[0]), expected)
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
    expected = everything(decode(cache, samples)[0])
    (path,) = (tmp_path / "cache").glob("*.npy")
    with path.open("wb") as file:
        if content == "archive":
            np.savez(file, a=np.zeros(3))
        elif content == "array of objects":
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        elif content == "text":
            file.write(b"PK no archive")
    pixels, _ = decode(cache, samples)
    assert np.array_equal(everything(pixels), expected)
    assert decodings == [5, 5]
