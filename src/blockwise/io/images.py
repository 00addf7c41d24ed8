"""Image files: the formats that are opened, and how their EXIF header says that they are turned."""

from __future__ import annotations

from io import BytesIO
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

# Pillow would also open formats that start other programs, such as PostScript
FORMATS = ("JPEG", "PNG", "GIF", "PPM", "BMP", "TIFF", "WEBP")
# what makes an image upright, by its EXIF orientation; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# one of these is in a file in which Pillow finds an orientation: EXIF in JPEG, WEBP and PNG, and XMP
MARKS = (b"Exif\0\0", b"EXIF", b"eXIf", b"Raw profile type", b"tiff:Orientation", b"XML:com.adobe.xmp")


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image without decoding its pixels.

    Raises:
        ValueError: The file has another format.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"this is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None


def orientation(file: BinaryIO) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if there is none, or none that can be read.

    It is 1 for a TIFF, which Pillow makes upright itself.
    """
    content = file.read()
    # most images have none; Pillow would take longer to say so, and decode all pixels of a PNG
    header = _jpeg_header(content) if content.startswith(b"\xff\xd8") else content
    if not any(mark in header for mark in MARKS):
        return 1
    try:
        with open_image(BytesIO(content)) as image:
            value = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in TURNS else 1
    except Exception:  # damaged files make Pillow raise errors of many types
        return 1


def _jpeg_header(content: bytes) -> bytes:
    """Return the segments of a JPEG before its pixels; each begins with 255, its kind and its length."""
    end = 2
    while content[end : end + 1] == b"\xff" and content[end + 1 : end + 2] != b"\xda":
        end += 2 + int.from_bytes(content[end + 2 : end + 4], "big")
    return content[:end]
