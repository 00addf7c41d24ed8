import os
import sys

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from blockwise.data.decode import decode, decode_all
from blockwise.data.samples import Sample, fingerprint

RAMP = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RAMP).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    pixels = decode(path, 16, "bicubic")
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    if mode not in ("1", "P", "CMYK"):
        reference = decode(RAMP, 16, "bicubic")
        assert np.abs(pixels.astype(int) - reference).max() <= 1


def test_the_centre_square_is_kept():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(wide, 10, "nearest") == 200).all()


def test_broken_images_are_told_apart(tmp_path):
    good, cut, text = (tmp_path / name for name in ("good.jpg", "cut.jpg", "text.jpg"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(good)
    cut.write_bytes(good.read_bytes()[:600])
    text.write_text("no image")
    samples = [Sample(path.name, 0, path) for path in (good, cut, text, tmp_path / "missing.jpg")]
    seen = []
    pixels, broken = decode_all(samples, 8, "bilinear", lambda: seen.append(1))
    assert set(broken) == {1, 2, 3}
    assert pixels[0].any()
    assert len(seen) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no devices and pipes among files")
def test_only_images_in_regular_files_are_read(tmp_path, monkeypatch):
    """PostScript would start Ghostscript, a device has no end, and a pipe waits for someone who writes."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    samples = [Sample(path.name, 0, path) for path in sorted(tmp_path.iterdir())]
    _, broken = decode_all(samples, 8, "bilinear", lambda: None)
    reasons = {sample.name: broken[index] for index, sample in enumerate(samples)}
    assert "this is no JPEG, PNG, GIF, PPM, BMP, TIFF or WEBP" in reasons.pop("script.jpg")
    assert all("not a regular file" in reason for reason in reasons.values()), reasons
    assert len(fingerprint(samples)) == 16
