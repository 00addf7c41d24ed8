import hashlib
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageOps

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, *, late=b""):
    """Return a PNG with 16 bits per channel, put together by hand; `late` are chunks behind the pixels."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")


def tiff(pixels):
    """Return an uncompressed TIFF of RGB or CMYK with 8 or 16 bits per channel, put together by hand."""
    height, width, channels = pixels.shape
    bits, after = 8 * pixels.dtype.itemsize, 8 + 2 + 9 * 12 + 4
    values = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, after),  # bits of each channel, behind the entries
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 5),
        (273, 4, 1, after + 2 * channels),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, pixels.nbytes),
    ]
    entries = b"".join(struct.pack("<HHII", *value) for value in values)
    depths = struct.pack(f"<{channels}H", *[bits] * channels)
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + depths + data


DEEP = np.random.default_rng(0).integers(0, 2**16, (8, 8, 4)).astype(np.uint16)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(DEEP[..., 0]), DEEP[..., [0, 0, 0]]),
        (png(DEEP[..., :2]), DEEP[..., [0, 0, 0]]),
        (png(DEEP[..., :3]), DEEP[..., :3]),
        (png(DEEP), DEEP[..., :3]),
        (tiff(DEEP[..., :3]), DEEP[..., :3]),
    ],
    ids=["grey PNG", "grey PNG with transparency", "RGB PNG", "RGBA PNG", "RGB TIFF"],
)
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path, content, expected):
    (tmp_path / "image").write_bytes(content)
    pixels = decode(tmp_path / "image", 8, "nearest")
    assert np.abs(pixels.transpose(1, 2, 0) - (expected / 257)).max() <= 1


# cyan, magenta, yellow, black; white is no ink at all
INKS = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 255, 0, 0): (255, 0, 255)}
INKS |= {(0, 0, 255, 0): (255, 255, 0), (0, 0, 0, 255): (0, 0, 0), (0, 255, 255, 0): (255, 0, 0)}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "TIFF of 16 bits"])
@pytest.mark.parametrize(("ink", "colour"), INKS.items())
def test_inks_become_the_colours_that_they_print(tmp_path, kind, ink, colour):
    path = tmp_path / "image"
    if kind == "JPEG":
        Image.new("CMYK", (16, 16), ink).save(path, "JPEG", quality=100)
    else:
        inks = np.array(ink, np.uint16) * 257 if "16" in kind else np.array(ink, np.uint8)
        path.write_bytes(tiff(np.broadcast_to(inks, (16, 16, 4)).copy()))
    assert np.abs(decode(path, 16, "nearest").astype(int) - np.reshape(colour, (3, 1, 1))).max() <= 2


def test_a_jpeg_of_inks_that_another_program_wrote_inverted(tmp_path):
    """Photoshop writes inverted inks and says so in a segment named Adobe; Pillow writes both as well."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "red.jpg").read_bytes()
    assert decode(tmp_path / "red.jpg", 4, "nearest")[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


def test_webp_without_loss_and_with_transparency(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 4)).astype(np.uint8)
    pixels[..., 3] |= 1  # what cannot be seen need not be kept
    Image.fromarray(pixels).save(tmp_path / "image.webp", lossless=True, exact=True)
    assert np.array_equal(decode(tmp_path / "image.webp", 9, "nearest"), pixels[..., :3].transpose(2, 0, 1))


def test_a_lossy_webp_is_nearly_the_same(tmp_path):
    Image.fromarray(RAMP[:, :40]).convert("RGB").save(tmp_path / "image.webp", quality=95)
    assert np.abs(decode(tmp_path / "image.webp", 40, "nearest")[0] - RAMP[:, :40].astype(float)).mean() < 4


def test_a_palette_and_its_transparency_become_colours(tmp_path):
    indices = np.arange(64).reshape(8, 8).astype(np.uint8) % 3
    image = Image.frombytes("P", (8, 8), indices.tobytes())
    colours = np.array([[255, 0, 0], [0, 128, 0], [7, 8, 9]], np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "image.png", transparency=1)
    assert np.array_equal(decode(tmp_path / "image.png", 8, "nearest"), colours[indices].transpose(2, 0, 1))


def turned(path, orientation, kind, size=(30, 18)):
    """Write a picture with an EXIF orientation; return how programs show it."""
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size[::-1], 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    kind, _, compression = kind.partition(" ")
    options = {"lossless": True} if kind == "WEBP" else {"compression": compression} if compression else {}
    picture.save(path, kind, exif=exif, **options)
    with Image.open(path) as opened:
        return ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (12, 12), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, kind, orientation):
    expected = turned(tmp_path / "image", orientation, kind)
    pixels = decode(tmp_path / "image", 12, "bilinear")
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))
    # Pillow has always made a TIFF upright, so for it nothing has changed
    assert Sample("image", 0, tmp_path / "image").orientation == (1 if "TIFF" in kind else orientation)


@pytest.mark.parametrize(("orientation", "corner"), [(3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_where_a_red_corner_goes(tmp_path, orientation, corner):
    """6 is what a telephone writes that is held upright: the first row is the right edge."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    red = decode(tmp_path / "image.png", 2, "nearest")[0]
    assert np.argwhere(red == 255).tolist() == [list(corner)]


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "image.png").write_bytes(png(DEEP[:, :4, 0], late=chunk(b"eXIf", exif.tobytes()[6:])))
    assert Sample("image.png", 0, tmp_path / "image.png").orientation == 6
    expected = np.rot90(DEEP[:, :4, 0] >> 8, -1)[:, 2:6]
    assert np.array_equal(decode(tmp_path / "image.png", 4, "nearest")[0], expected)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_does_not_exist_changes_nothing(tmp_path, orientation):
    turned(tmp_path / "image.png", orientation, "PNG")
    turned(tmp_path / "plain.png", 1, "PNG")
    images = [tmp_path / "image.png", tmp_path / "plain.png"]
    assert np.array_equal(*(decode(image, 12, "bilinear") for image in images))
    assert Sample("image", 0, images[0]).orientation == 1


def test_a_damaged_header_costs_no_image(tmp_path):
    turned(tmp_path / "image.jpg", 6, "JPEG")
    content = (tmp_path / "image.jpg").read_bytes()
    start = content.index(b"Exif\0\0") + 6
    (tmp_path / "image.jpg").write_bytes(content[:start] + b"\xff" * 14 + content[start + 14 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(tmp_path / "image.jpg", 12, "bilinear").any()
        assert Sample("image.jpg", 0, tmp_path / "image.jpg").orientation == 1


def test_only_data_sets_with_a_turned_image_have_a_new_fingerprint(tmp_path):
    """Records of earlier versions, which ignored the orientation, are found for all others."""
    paths = [tmp_path / f"{orientation}.jpg" for orientation in (1, 6)]
    for path, orientation in zip(paths, (1, 6), strict=True):
        turned(path, orientation, "JPEG")
        digest = hashlib.blake2b(path.read_bytes()).hexdigest()
        before = hashlib.sha256(f"image\x000\0{digest}".encode()).hexdigest()[:16]
        assert (fingerprint([Sample("image", 0, path)]) == before) == (orientation == 1)


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
    assert "this is not a JPEG, PNG, GIF, PPM, BMP, TIFF or WEBP file" in reasons.pop("script.jpg")
    assert all("not a regular file" in reason for reason in reasons.values()), reasons
    assert len(fingerprint(samples)) == 16
