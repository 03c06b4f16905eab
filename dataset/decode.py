"""Image files to pixels: JPEG through simplejpeg, scaled down while it is decoded; everything else through Pillow.

A `Picture` knows its size before it is decoded, so that the crop is drawn first and decides how much resolution is needed.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Optional, Protocol, Tuple

import numpy as np
from torch import Tensor

from dataset.base import BadImageError, Encoded, Item

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_START = b"\xff\xd8\xff"
LUMA = (299, 587, 114)  # ITU-R 601, per mille of red, green, blue; as Pillow turns RGB to grey
ORIENTATION = 0x0112  # of EXIF: how the camera was held
PROGRAMS = ("EPS", "WMF")  # which Pillow has other programs run
SEGMENT = 65536  # bytes; EXIF is one of the first things in a file, and no longer than this
TURNED = (5, 6, 7, 8)  # those of its values that swap width and height
# Of DCT-scaled decoding: the ones for which libjpeg-turbo has fast code.
SCALES = (8, 4, 2)


class Picture(Protocol):
    """One image, upright, not augmented. `size` is (height, width) in pixels."""

    size: Tuple[int, int]

    def pixels(self, least: float) -> np.ndarray:
        """uint8 [h, w, C], decoded at `least` of the size or more, at most at 1. Raises BadImageError."""
        ...


def open_picture(item: Item, num_channels: int, max_pixels: int) -> Picture:
    """The picture of a source's item, with 1 channel (grey) or 3 (RGB). Raises BadImageError for what cannot be one."""
    if isinstance(item, Tensor):
        return _Pixels(to_channels(item.permute(1, 2, 0).numpy(), num_channels))
    if not item.content:
        raise BadImageError(item.where, "the file is empty")
    if item.content.startswith(JPEG_START):
        try:
            return _Jpeg(item, num_channels, max_pixels)
        except ValueError:  # an unusual one: Pillow knows more of them
            pass
    return _Other(item, num_channels, max_pixels)


class _Pixels:
    """Pixels in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.size: Tuple[int, int] = pixels.shape[:2]

    def pixels(self, least: float) -> np.ndarray:
        return self._pixels


class _Jpeg:
    """A JPEG file; where simplejpeg cannot decode it, or not without a warning, Pillow has the last word.

    The constructor raises ValueError where the header is not one that simplejpeg reads.
    """

    def __init__(self, item: Encoded, num_channels: int, max_pixels: int) -> None:
        import simplejpeg

        self._item, self._num_channels, self._max_pixels = item, num_channels, max_pixels
        height, width, colours, _ = simplejpeg.decode_jpeg_header(item.content)
        _check_size(item.where, height, width, max_pixels)
        if colours not in ("YCbCr", "Gray", "RGB"):
            raise ValueError(colours)  # CMYK
        self._stored = height, width
        self._orientation = _orientation(item)
        self.size = (width, height) if self._orientation in TURNED else (height, width)

    def pixels(self, least: float) -> np.ndarray:
        import simplejpeg

        height, width = self._stored
        scale = next((scale for scale in SCALES if least * scale <= 1.0), 1)
        wanted = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
        try:
            pixels = simplejpeg.decode_jpeg(
                self._item.content, "GRAY" if self._num_channels == 1 else "RGB", **(wanted if scale > 1 else {})
            )
        except ValueError:
            return _Other(self._item, self._num_channels, self._max_pixels, self._orientation).pixels(least)
        return _upright(pixels, self._orientation)


class _Other:
    """Any file that Pillow opens. Alpha is left out, 16 bits are cut to 8, of an animation the first frame is taken."""

    def __init__(self, item: Encoded, num_channels: int, max_pixels: int, orientation: Optional[int] = None) -> None:
        """`orientation` is given where it is known already."""
        from PIL import Image

        # Pillow's own limit prints a warning; ours is checked before anything is decoded.
        Image.MAX_IMAGE_PIXELS = None
        self._where, self._num_channels = item.where, num_channels
        try:
            with _Quiet():
                self._image = Image.open(io.BytesIO(item.content))
                if self._image.format in PROGRAMS:
                    raise BadImageError(item.where, f"{self._image.format} is a program that draws, not a picture")
                width, height = self._image.size
                _check_size(item.where, height, width, max_pixels)
                # EXIF of a PNG may come last; looking for it would hide what decoding finds. TIFFs are turned by this, or were.
                if self._image.format in ("PNG", "TIFF"):
                    self._image.load()
                    width, height = self._image.size
        except BadImageError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds, each with the reason in its text
            raise BadImageError(item.where, _reason(error)) from error
        if orientation is None:
            orientation = 1 if self._image.format == "TIFF" else _orientation_of(self._image)
        self._orientation = orientation
        self.size = (width, height) if self._orientation in TURNED else (height, width)

    def pixels(self, least: float) -> np.ndarray:
        try:
            with _Quiet():
                pixels = np.array(_eight_bits(self._image).convert("L" if self._num_channels == 1 else "RGB"))
        except Exception as error:
            raise BadImageError(self._where, _reason(error)) from error
        return _upright(pixels.reshape(*pixels.shape[:2], -1), self._orientation)


def to_channels(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """A grey image as RGB or the reverse, uint8 [h, w, C] to [h, w, num_channels]."""
    if pixels.shape[2] == num_channels:
        return pixels
    if num_channels == 3:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    grey = (pixels.astype(np.int32) @ np.array(LUMA, dtype=np.int32) + 500) // 1000
    return grey.astype(np.uint8)[:, :, None]


def _check_size(where: str, height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise BadImageError(where, f"{width:,} x {height:,} pixels are more than max_image_pixels = {limit:,}")


def _orientation(item: Encoded) -> int:
    """EXIF's, 1 where there is none. Looked for only in files that have EXIF: opening one in Pillow takes a while."""
    if item.content.find(b"Exif\x00", 0, SEGMENT) < 0:
        return 1
    from PIL import Image

    try:
        with _Quiet():
            return _orientation_of(Image.open(io.BytesIO(item.content)))
    except Exception:
        return 1


def _orientation_of(image: Image) -> int:
    try:
        with _Quiet():
            value = image.getexif().get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    except Exception:  # EXIF that cannot be read; the image may be fine
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, C] as EXIF's orientation says that it is to be seen; [w, h, C] for those that are turned."""
    if orientation in TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _eight_bits(image: Image) -> Image:
    """Modes that `convert` would clip or warn of, in one that it converts faithfully."""
    from PIL import Image as PillowImage

    if image.mode == "F":
        raise ValueError("its pixels are fractions, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, also where Pillow opens them as 32
        return PillowImage.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


class _Quiet(warnings.catch_warnings):
    """Without Pillow's warnings of what it copes with."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "cannot identify image file" in str(error):
        return "not an image, or of a kind that Pillow does not know"
    return str(error) or type(error).__name__
