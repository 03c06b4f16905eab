"""Image files with something wrong, each of a kind that users have met."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Callable, Dict, Tuple

import numpy as np
from PIL import Image


def encoded(kind: str = "JPEG", size: Tuple[int, int] = (64, 48), **options: object) -> bytes:
    """A small valid image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has this size, with no more than a few bytes of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header is changed to say that it has this size."""
    content = bytearray(encoded())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None  # type: ignore[func-returns-value]


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def make_unreadable(path: Path) -> None:
    """A folder instead of the file: root may read files without permission."""
    path.unlink()
    path.mkdir()


# What is done to a file, and words of the reason that is then given.
BAD: Dict[str, Tuple[Callable[[Path], None], str]] = {
    "no bytes": (write(b""), "the file is empty"),
    "half of a JPEG": (write(encoded()[: len(encoded()) // 2]), "truncated"),
    "the start of a JPEG": (write(encoded()[:30]), "not an image|truncated|cannot"),
    "half of a PNG": (write(encoded("PNG")[: len(encoded("PNG")) // 2]), "truncated"),
    "half of a WebP": (write(encoded("WEBP")[:100]), "not an image|decode|failed|truncated"),
    "half of a GIF": (write(encoded("GIF")[:900]), "truncated"),
    "half of a TIFF": (write(encoded("TIFF")[:200]), "not an image|unpack|truncated|TIFF|bytes"),
    "a page of HTML": (write(b"<html>404 Not Found</html>"), "not an image"),
    "a PNG without its header": (write(encoded("PNG")[20:]), "not an image"),
    "a PNG of 0 x 0": (write(png_header(0, 0)), "not an image|0"),
    "a JPEG of 0 x 48": (write(jpeg_of_size(0, 48)), "."),
    "a PNG of 100 megapixels": (write(png_header(10_000, 10_000)), "10,000 x 10,000 pixels are more than max_image_pixels"),
    "a JPEG of 4,295 megapixels": (write(jpeg_of_size(65_500, 65_500)), "more than max_image_pixels"),
    "a PNG with a broken checksum": (write(encoded("PNG")[:-60] + bytes(60)), "."),
    "a TIFF of fractions": (write(float_tiff()), "fractions"),
    "vanished": (lambda path: os.unlink(path), "No such file"),
    "a link to nowhere": (replace_by_link, "No such file"),
    "unreadable": (make_unreadable, "Is a directory"),
}  # fmt: skip
