"""Damaged images: decoding a data set never raises, and says in one line why an image cannot be read."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from fuzzing import check_line, damaged, examples, within_limits
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blockwise.data.decode import decode_all, to_rgb
from blockwise.data.samples import Sample, fingerprint
from blockwise.io.images import FORMATS

RAMP = (np.add.outer(np.arange(12), np.arange(18)) * 8).astype(np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # orientation
VARIANTS = [
    *(("PNG", mode, {}) for mode in ("L", "RGBA", "P", "1", "LA", "I;16")),
    *(("JPEG", mode, options) for mode, options in (("RGB", {}), ("CMYK", {}), ("L", {"progressive": True}))),
    ("GIF", "P", {"save_all": True, "append_images": [Image.fromarray(RAMP.T)]}),
    *(("BMP", mode, {}) for mode in ("RGB", "P", "1")),
    *(("TIFF", "RGB", {"compression": name}) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    *(("TIFF", mode, {}) for mode in ("CMYK", "I;16", "F")),
    *(("WEBP", "RGB", options) for options in ({}, {"lossless": True})),
    *((kind, "RGB", {"exif": TURNED}) for kind in ("JPEG", "PNG", "TIFF", "WEBP")),
    *(("PPM", mode, {}) for mode in ("L", "RGB", "1")),
]


def encoded(kind, mode, options):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RAMP).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


ORIGINALS = [(kind, encoded(kind, mode, options)) for kind, mode, options in VARIANTS]
PLAIN = [b"P2 2 2 255 0 1 2 3\n", b"P3 1 1 15 1 2 3\n", b"P1 2 2 0 1 1 0\n", b"P6 1000000 1000000 255\n"]


def with_checksums(content):
    """Return a PNG of which all chunks have the right checksum: without it, hardly anything would be read."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def check(content):
    with within_limits() as folder:
        (folder / "image.jpg").write_bytes(content)
        seen = []
        samples = [Sample("image.jpg", 0, folder / "image.jpg")]
        pixels, broken = decode_all(samples, 8, "bilinear", lambda: seen.append(1))
        assert len(fingerprint(samples)) == 16
        assert 1 <= samples[0].orientation <= 8
        assert pixels.shape == (1, 3, 8, 8)
        assert len(seen) == 1
        assert set(broken) <= {0}
        for reason in broken.values():
            check_line(reason)
            assert len(reason) < 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_decoded_or_named(kind):
    @given(damaged(*(content for name, content in ORIGINALS if name == kind), *(PLAIN if kind == "PPM" else ())))
    @examples(0.5)
    def test(content):
        check(with_checksums(content) if kind == "PNG" else content)

    test()


@given(st.binary(max_size=300))
@examples(0.5)
@pytest.mark.filterwarnings("ignore")
def test_bytes_are_no_image(content):
    check(content)


def test_pixels_of_sixteen_bits_take_few_times_their_memory():
    """A PNG of 200 bytes that claims to be 18 x 8,000,000 pixels took 3 GB."""
    image = Image.fromarray(np.full((1000, 1000), 0xABCD, np.uint16))
    tracemalloc.start()
    pixels = np.asarray(to_rgb(image))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pixels == 0xAB).all()
    assert peak < 5 * 2 * 10**6


def test_the_originals_can_be_read():
    with within_limits() as folder:
        samples = []
        for number, (kind, content) in enumerate(ORIGINALS):
            (folder / str(number)).write_bytes(content)
            samples.append(Sample(kind, 0, folder / str(number)))
        _, broken = decode_all(samples, 8, "bilinear", lambda: None)
        assert [VARIANTS[index][1] for index in broken] == ["F"]
