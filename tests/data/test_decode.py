import numpy as np
import pytest
from PIL import Image

from blockwise.data.decode import decode, decode_all
from blockwise.data.samples import Sample

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
