"""Decoding against Pillow: the same pixels, or where a JPEG is scaled while it is decoded, the same picture."""

from __future__ import annotations

import io
import math
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, ImageOps

from dataset.base import BadImageError, Encoded
from dataset.decode import open_picture, to_channels
from dataset.transforms.crop import resize

pytestmark = pytest.mark.filterwarnings("error")
ORIENTATION = 0x0112
NO_LIMIT = 10**9


@lru_cache(maxsize=None)
def photograph(name):
    """One of the two that scikit-learn brings along, 640 x 427."""
    import sklearn

    image = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / f"{name}.jpg")
    return image.convert("RGB")


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture_of(content, num_channels=3, max_pixels=NO_LIMIT):
    return open_picture(Encoded(content, "photo.jpg"), num_channels, max_pixels)


def decoded(content, num_channels=3, least=1.0):
    return picture_of(content, num_channels).pixels(least)


def by_pillow(content, mode="RGB"):
    """What Pillow alone makes of a file: [h, w, C]."""
    return pillow_pixels(Image.open(io.BytesIO(content)), mode)


def pillow_pixels(image, mode="RGB"):
    pixels = np.array(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def mean_difference(first, second):
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int)).mean()


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize("size", [(640, 427), (333, 251), (17, 13), (1, 1)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colours", ["grey", "4:4:4", "4:2:2", "4:2:0"])
def test_a_photograph_at_full_size_is_what_pillow_decodes(name, size, progressive, colours):
    image = photograph(name).crop((200, 100, 200 + size[0], 100 + size[1]))
    for quality in (60, 95):
        if colours == "grey":
            content = file_of(image.convert("L"), "JPEG", quality=quality, progressive=progressive)
        else:
            content = file_of(image, "JPEG", quality=quality, progressive=progressive, subsampling=colours)
        assert picture_of(content).size == (size[1], size[0])
        # Measured: 0, to the last bit, with the libjpeg-turbo that both bring along; another version may round differently.
        assert mean_difference(decoded(content), by_pillow(content)) < 0.5
        # Measured: 0.19 at most. A JPEG's own brightness is taken, where Pillow makes grey of the colours, clipped to 0 ... 255.
        assert mean_difference(decoded(content, num_channels=1), by_pillow(content, "L")) < 0.5


@pytest.mark.parametrize("size", [(640, 427), (333, 251), (64, 64), (9, 100), (7, 1)])
@pytest.mark.parametrize("least", [0.01, 0.06, 0.12, 0.125, 0.13, 0.25, 0.26, 0.4, 0.5, 0.51, 0.99, 1.0, 3.0])
def test_a_jpeg_is_decoded_at_the_smallest_of_four_scales_that_suffices(size, least):
    picture = picture_of(file_of(photograph("china").crop((0, 0, *size)), "JPEG"))
    width, height = size
    found = picture.pixels(least).shape
    enough = [scale for scale in (8, 4, 2, 1) if scale == 1 or 1 / scale >= least]
    assert found == (math.ceil(height / enough[0]), math.ceil(width / enough[0]), 3)
    assert found[0] >= math.ceil(min(least, 1) * height)
    assert found[1] >= math.ceil(min(least, 1) * width)
    assert picture.size == (height, width)  # whatever was decoded


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("colours", ["grey", "4:4:4", "4:2:0"])
@pytest.mark.parametrize("size", [(640, 427), (333, 251)])
def test_a_scaled_jpeg_is_what_pillows_draft_mode_decodes(scale, num_channels, colours, size):
    image = photograph("flower").crop((0, 0, *size))
    content = file_of(image.convert("L"), "JPEG") if colours == "grey" else file_of(image, "JPEG", subsampling=colours)
    drafted = Image.open(io.BytesIO(content))
    mode = "L" if num_channels == 1 else "RGB"
    drafted.draft(mode, (size[0] // scale, size[1] // scale))
    expected = pillow_pixels(drafted, mode)
    assert expected.shape[0] == math.ceil(size[1] / scale)
    assert mean_difference(decoded(content, num_channels, least=1 / scale), expected) < 0.5


# Means of the difference to Pillow's full decode and bilinear resize over 640 x 424 pixels, of 255, measured for 4:2:0:
#   target / size   0.5   0.49  0.3   0.26  0.25  0.2   0.13  0.125 0.1   0.06  0.03
#   china (leaves)  3.9   2.8   1.1   0.9   2.7   1.7   0.9   2.6   1.7   0.8   0.3
#   flower          1.2   0.8   0.5   0.4   1.3   0.8   0.5   1.5   1.0   0.5   0.3
# A scaled JPEG is averaged over squares, a resize over triangles twice as wide, less sharp (Pillow's own BOX and BILINEAR
# differ by 4.1 for china at a half): below 2 where what is decoded is 1.5 times the target. Sides that are no multiple of 8 add a
# shift by up to one decoded pixel at the far end (the last square reaches beyond the image): 640 x 427 has 5.4 for china at 1/8.
@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize("colours", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize(("least", "bound"), [(0.5, 4.5), (0.3, 2), (0.26, 2), (0.25, 4.5), (0.15, 2), (0.06, 2)])
def test_a_scaled_and_resized_jpeg_looks_as_pillows_full_decode_and_resize(name, colours, least, bound):
    content = file_of(photograph(name).crop((0, 0, 640, 424)), "JPEG", quality=90, subsampling=colours)
    size = round(least * 424), round(least * 640)
    expected = Image.open(io.BytesIO(content)).resize(size[::-1], Image.BILINEAR)
    found = resize(decoded(content, least=least), size).permute(1, 2, 0).numpy()
    assert mean_difference(found, np.asarray(expected)) < bound


def test_a_scaled_jpeg_is_the_mean_of_squares_of_pixels():
    image = photograph("china").crop((0, 0, 640, 424))  # whole squares of 8
    content = file_of(image, "JPEG", quality=95, subsampling="4:4:4")
    for scale in (2, 4, 8):
        expected = np.asarray(Image.open(io.BytesIO(content)).reduce(scale))
        # Measured: 0.4, as the full decode rounds and clips before the mean is taken.
        assert mean_difference(decoded(content, least=1 / scale), expected) < 1


def uneven(size):
    """An image that is no other when turned or mirrored."""
    return photograph("china").resize(size)


def with_orientation(kind, value, size=(45, 29)):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return file_of(uneven(size), kind, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photograph_is_shown_as_the_camera_was_held(kind, orientation):
    content = with_orientation(kind, orientation)
    expected = pillow_pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert expected.shape == ((45, 29, 3) if orientation > 4 else (29, 45, 3))
    picture = picture_of(content)
    assert picture.size == expected.shape[:2]
    assert mean_difference(picture.pixels(1.0), expected) < 0.5
    assert mean_difference(picture.pixels(1.0), expected) < 0.5  # and so again
    if orientation > 1:
        assert mean_difference(picture.pixels(1.0), by_pillow(with_orientation(kind, 1)).reshape(expected.shape)) > 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_photograph_is_turned_as_the_whole_one(orientation):
    content = with_orientation("JPEG", orientation, (64, 32))
    drafted = Image.open(io.BytesIO(content))
    drafted.draft("RGB", (32, 16))
    expected = pillow_pixels(ImageOps.exif_transpose(drafted))
    assert expected.shape == ((32, 16, 3) if orientation > 4 else (16, 32, 3))
    assert mean_difference(decoded(content, least=0.5), expected) < 0.5


CORRUPT_EXIF = {
    "noise": b"Exif\x00\x00" + bytes(range(200)),
    "no content": b"Exif\x00\x00",
    "a directory beyond its end": b"Exif\x00\x00MM\x00*" + struct.pack(">I", 10**6),
    "a directory cut off": b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHI", 8, 40, ORIENTATION, 3, 1),
    "orientation 0": b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 0, 0, 0),
    "orientation 77": b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, 77, 0, 0),
    "orientation in letters": b"Exif\x00\x00MM\x00*" + struct.pack(">IHHHI4sI", 8, 1, ORIENTATION, 2, 4, b"six\0", 0),
}  # fmt: skip


@pytest.mark.parametrize("exif", CORRUPT_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_no_harm(kind, exif):
    content = file_of(uneven((45, 29)), kind, exif=CORRUPT_EXIF[exif])
    picture = picture_of(content)
    assert picture.size == (29, 45)
    np.testing.assert_array_equal(picture.pixels(1.0), by_pillow(file_of(uneven((45, 29)), kind)))


def inks():
    """A CMYK image, 32 x 16, with ramps of all four inks."""
    across, down = np.meshgrid(np.arange(32) * 8, np.arange(16) * 16)
    channels = (across, 255 - across, down, (across + down) // 6)
    return Image.merge("CMYK", [Image.fromarray(channel.astype(np.uint8)) for channel in channels])


def ycck(image):
    """A JPEG of a CMYK image in the way of Photoshop: what is left of the inks as YCbCr, and the marker that says so."""
    cyan, magenta, yellow, black = image.split()
    luma = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    # Pillow inverts all four channels as it writes, and again as it reads.
    stored = Image.merge("CMYK", [*(ImageOps.invert(channel) for channel in luma), black])
    content = bytearray(file_of(stored, "JPEG", quality=100, subsampling=0))
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0
    content[marker + 11] = 2
    return bytes(content)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_jpegs_of_printers_inks_become_the_colours_on_paper(kind, num_channels):
    content = ycck(inks()) if kind == "YCCK" else file_of(inks(), "JPEG", quality=100, subsampling=0)
    ink = np.asarray(inks()).astype(float)
    rgb = (255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) / 255
    expected = rgb if num_channels == 3 else rgb @ [[0.299], [0.587], [0.114]]
    assert mean_difference(decoded(content, num_channels), expected) < 3  # JPEG's loss, twice rounded
    assert decoded(content, num_channels, least=0.125).dtype == np.uint8


def ramp16():
    return (np.arange(16 * 32).reshape(16, 32) * 128).astype(np.uint16)


def animation():
    frames = [Image.new("P", (32, 16), number) for number in (1, 2, 3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 10, 200, 30, 255, 0, 0, 0, 0, 255])
    return file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def clear(mode, colour):
    """A PNG of one colour, which is also the one that is to be seen through."""
    image = Image.new(mode, (32, 16), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 200, 30])
    return file_of(image, "PNG", transparency=colour)


UNUSUAL = {
    "16-bit grey PNG": (lambda: file_of(Image.fromarray(ramp16()), "PNG"), lambda: np.round(ramp16() / 257)),
    "16-bit grey TIFF": (lambda: file_of(Image.fromarray(ramp16()), "TIFF"), lambda: np.round(ramp16() / 257)),
    "16-bit PGM": (lambda: b"P5 32 16 65535\n" + ramp16().astype(">u2").tobytes(), lambda: np.round(ramp16() / 257)),
    "1-bit PNG": (lambda: file_of(Image.fromarray(ramp16() > 30000), "PNG"), lambda: (ramp16() > 30000) * 255),
    "grey and alpha": (lambda: file_of(Image.new("LA", (32, 16), (90, 0)), "PNG"), lambda: 90),
    "colour and alpha in WebP": (
        lambda: file_of(Image.new("RGBA", (32, 16), (10, 200, 30, 99)), "WEBP", lossless=True), lambda: (10, 200, 30)),
    "palette with a clear index": (lambda: clear("P", 1), lambda: (10, 200, 30)),
    "a clear colour": (lambda: clear("RGB", (10, 200, 30)), lambda: (10, 200, 30)),
    "a clear grey": (lambda: clear("L", 90), lambda: 90),
    "a clear black of two": (lambda: clear("1", 0), lambda: 0),
    "an animation": (animation, lambda: (10, 200, 30)),
}  # fmt: skip


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_files_keep_their_colours_without_a_warning(kind, num_channels):
    make, colours = UNUSUAL[kind]
    expected = np.asarray(colours(), dtype=float)
    if expected.ndim == 2:
        expected = expected[:, :, None]
    elif expected.ndim == 1 and num_channels == 1:
        expected = np.round(expected @ [0.299, 0.587, 0.114])
    found = decoded(make(), num_channels)
    assert found.dtype == np.uint8
    assert found.shape == (16, 32, num_channels)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


LARGE = {
    "JPEG": lambda image: file_of(image, "JPEG"),
    "CMYK JPEG": lambda image: file_of(image.convert("CMYK"), "JPEG"),
    "PNG": lambda image: file_of(image, "PNG"),
    "GIF": lambda image: file_of(image, "GIF"),
    "BMP": lambda image: file_of(image, "BMP"),
    "TIFF": lambda image: file_of(image, "TIFF"),
    "turned TIFF": lambda image: with_orientation("TIFF", 6, image.size),
    "PPM": lambda image: file_of(image, "PPM"),
    "WEBP": lambda image: file_of(image, "WEBP"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_an_image_above_the_limit_is_refused_before_it_is_decoded(monkeypatch, kind):
    content = LARGE[kind](uneven((100, 80)))
    assert picture_of(content, max_pixels=8000).pixels(1.0).shape[2] == 3

    def decode(*arguments, **options):
        raise AssertionError("decoded")

    import simplejpeg

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    monkeypatch.setattr(Image.Image, "load", decode)
    with pytest.raises(BadImageError, match="pixels are more than max_image_pixels = 7,999") as error:
        picture_of(content, max_pixels=7999)
    assert error.value.where == "photo.jpg"


@pytest.mark.parametrize("num_channels", [1, 3])
def test_channels_of_pixels_in_memory_are_pillows(num_channels):
    mode = "L" if num_channels == 1 else "RGB"
    colours = np.array(photograph("flower"))
    found = to_channels(colours, num_channels)
    assert found.dtype == np.uint8
    # Pillow's grey is in steps of 1/65536, ours of 1/1000: one level apart where both lie near a half.
    assert np.abs(found.astype(int) - pillow_pixels(photograph("flower"), mode)).max() <= 1
    assert mean_difference(found, pillow_pixels(photograph("flower"), mode)) < 0.01
    grey = np.array(photograph("flower").convert("L"))
    np.testing.assert_array_equal(
        to_channels(grey[:, :, None], num_channels), pillow_pixels(Image.fromarray(grey), mode)
    )


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 11, reason=f"Pillow {PIL.__version__} takes no orientation from XMP in a JPEG"
)
def test_a_damaged_photograph_that_pillow_reads_keeps_its_orientation():
    """simplejpeg warns of bytes before a marker, and leaves the file to Pillow; Pillow alone knows of XMP."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    content = file_of(uneven((100, 60)), "JPEG")
    content = content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]
    at = content.rindex(b"\xff\xd9")
    odd = content[:at] + b"\x00\x17\x2a" + content[at:]
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size == (60, 100)
    picture = picture_of(odd)
    for least in (1.0, 0.1):
        assert resize(picture.pixels(least), (8, 8)).shape == (3, 8, 8)
        assert picture.pixels(1.0).shape[:2] == picture.size == (60, 100)


def test_a_program_that_draws_is_no_picture() -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"
    with pytest.raises(BadImageError, match="EPS is a program that draws"):
        open_picture(Encoded(content, "x.png"), 3, 10**6)
