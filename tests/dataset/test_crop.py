"""Crops against torchvision's, and those of scaled JPEGs against those of the whole picture."""

from __future__ import annotations

import io
import random
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.base import Encoded
from dataset.decode import open_picture
from dataset.transforms.crop import Box, centre_crop, random_box, resized_crop
from dataset.transforms.policies import transforms_v2

DRAWS = 4000
CRITICAL = 1.95  # of Kolmogorov and Smirnov's statistic, for one in a thousand


def picture_of(image):
    return open_picture(image, image.shape[0], 10**9)


def random_image(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@lru_cache(maxsize=None)
def boxes(size, scale):
    """[DRAWS, 4] as (top, left, height, width), ours and torchvision's."""
    transforms_v2()  # makes sure that torchvision can be imported
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(1, *size)
    draw = random.Random(3)
    ours = np.array([random_box(size, scale, draw) for _ in range(DRAWS)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)])
    return ours, theirs


def free_share(start, length, whole):
    """Where in the room that it has a box lies, from 0 to 1; a box without room in the middle."""
    room = whole - length
    return np.where(room > 0, start / np.maximum(room, 1), 0.5)


MEASURES = {
    "share of the area": lambda box, size: box[:, 2] * box[:, 3] / (size[0] * size[1]),
    "ratio of the sides": lambda box, size: np.log(box[:, 3] / box[:, 2]),
    "place from the top": lambda box, size: free_share(box[:, 0], box[:, 2], size[0]),
    "place from the left": lambda box, size: free_share(box[:, 1], box[:, 3], size[1]),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
@pytest.mark.parametrize("size", [(375, 500), (1000, 100), (100, 1000), (20, 20)])
def test_random_boxes_have_torchvisions_distribution(size, scale, measure):
    ours, theirs = (MEASURES[measure](box, size) for box in boxes(size, scale))
    error = np.sqrt((ours.var() + theirs.var()) / DRAWS)
    assert abs(ours.mean() - theirs.mean()) <= 4 * error
    steps = np.sort(np.concatenate((ours, theirs)))
    shares = (np.searchsorted(np.sort(one), steps, side="right") / DRAWS for one in (ours, theirs))
    assert np.abs(np.subtract(*shares)).max() < CRITICAL * np.sqrt(2 / DRAWS)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (1.0, 1.0), (1e-9, 1e-9)])
@pytest.mark.parametrize("size", [(375, 500), (100, 1000), (1000, 100), (20, 20), (1, 1), (1, 5000), (3, 2)])
def test_random_boxes_lie_inside_the_picture(size, scale):
    draw = random.Random(0)
    for _ in range(300):
        box = random_box(size, scale, draw)
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= size[0] - box.height
        assert 0 <= box.left <= size[1] - box.width


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("shape", [(3, 100, 160), (1, 77, 51), (3, 20, 20), (3, 1, 40), (1, 3, 2)])
def test_a_resized_crop_of_pixels_is_torchvisions(shape, size):
    image = random_image(*shape)
    picture, draw = picture_of(image), random.Random(0)
    for _ in range(20):
        box = random_box(picture.size, (0.05, 1.0), draw)
        expected = transforms_v2().functional.resized_crop(image, *box, [size, size], antialias=True)
        # Measured: 0; where torch resizes floats only, a rounding may differ.
        assert (resized_crop(picture, box, size).int() - expected.int()).abs().max() <= 1


def jpeg_of(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 95, "subsampling": "4:4:4", **options})
    return open_picture(Encoded(buffer.getvalue(), "photo.jpg"), 3, 10**9)


def gradients(width, height):
    """[height, width, 3]: red tells the column, green the row, from 0 to 255."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack((across, down, np.full_like(down, 128)), axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("shape", [(640, 424), (640, 427), (633, 425), (257, 129)])
def test_a_crop_of_a_scaled_jpeg_shows_the_region_that_was_drawn(shape, size):
    width, height = shape
    picture, draw = jpeg_of(gradients(width, height)), random.Random(0)
    for _ in range(30):
        box = random_box(picture.size, (0.1, 1.0), draw)
        scale = next((scale for scale in (8, 4, 2) if 2 * scale * size <= min(box.height, box.width)), 1)
        image = resized_crop(picture, box, size).float()
        centres = (torch.arange(size) + 0.5) / size
        across = (box.left + centres * box.width - 0.5) / (width - 1) * 255
        down = (box.top + centres * box.height - 0.5) / (height - 1) * 255
        # Start and length are rounded to decoded pixels, and the last square of 8 may reach beyond the picture: two of them
        # in all, and a level and a half of JPEG's own.
        assert (image[0].mean(0) - across).abs().max() < 1.5 + 2 * (scale > 1) * scale * 255 / width
        assert (image[1].mean(1) - down).abs().max() < 1.5 + 2 * (scale > 1) * scale * 255 / height


@pytest.mark.parametrize(("size", "scale"), [(32, 8), (64, 4), (106, 4), (150, 2), (212, 2)])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 208), (0, 160)])
def test_a_crop_of_a_scaled_photograph_is_that_of_the_whole_one(size, scale, top, left):
    import sklearn

    photograph = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg")
    picture = jpeg_of(np.asarray(photograph.crop((0, 0, 640, 424))))
    assert picture.pixels(size / 424).shape == (424 // scale, 640 // scale, 3)
    box = Box(top, left, 424, 424)  # on whole squares of 8
    whole = torch.from_numpy(picture.pixels(1.0)).permute(2, 0, 1)
    difference = resized_crop(picture, box, size).float() - resized_crop(picture_of(whole), box, size).float()
    # Measured: 1.5 for 106 and 212, where nothing is left to resize, 1.0 for the others. One decoded pixel beside it: 4 and more.
    assert difference.abs().mean() < 2


@pytest.mark.parametrize("name", ["china", "flower"])
@pytest.mark.parametrize("cut", [(640, 424), (640, 427), (633, 425)])
@pytest.mark.parametrize("size", [24, 33, 42, 53, 64, 84, 85, 106, 120, 170, 171, 200, 224])
def test_crops_of_a_jpeg_are_pillows_within_two_levels_in_the_mean(name, cut, size):
    import sklearn

    photograph = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / f"{name}.jpg").crop((0, 0, *cut))
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=90)
    picture, draw = open_picture(Encoded(buffer.getvalue(), "photo.jpg"), 3, 10**9), random.Random(size)
    by_pillow = Image.open(io.BytesIO(buffer.getvalue()))
    for box in (Box(0, 0, cut[1], cut[0]), *(random_box(picture.size, (0.3, 1.0), draw) for _ in range(3))):
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(by_pillow.crop(edges).resize((size, size), Image.BILINEAR)).astype(int)
        found = resized_crop(picture, box, size).permute(1, 2, 0).numpy()
        assert np.abs(found - expected).mean() < 2


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (48, 64), (100, 101), (333, 334), (20, 20), (257, 700), (3, 50)]
)
@pytest.mark.parametrize(("short_side", "crop"), [(32, 28), (32, 32), (37, 32), (256, 224), (9, 8), (33, 32)])
def test_centre_crops_are_torchvisions(size, num_channels, short_side, crop):
    functional = transforms_v2().functional
    image = random_image(num_channels, *size)
    expected = functional.center_crop(functional.resize(image, [short_side], antialias=True), [crop, crop])
    found = centre_crop(picture_of(image), short_side, crop)
    assert found.shape == (num_channels, crop, crop)
    # Measured: 0; where torch resizes floats only, a rounding may differ.
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(424, 640), (427, 640), (425, 633)])
def test_the_centre_of_a_scaled_jpeg_is_the_centre(size):
    picture = jpeg_of(gradients(size[1], size[0]))
    whole = picture_of(torch.from_numpy(picture.pixels(1.0)).permute(2, 0, 1))
    for short_side in (32, 64, 128, 200):
        difference = centre_crop(picture, short_side, 24).float() - centre_crop(whole, short_side, 24).float()
        # The last square of 8 may reach 7 pixels beyond the picture; a level and a half are JPEG's own.
        assert difference[0].mean(0).abs().max() < 1.5 + 7 * 255 / size[1]
        assert difference[1].mean(1).abs().max() < 1.5 + 7 * 255 / size[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("size", [(1, 1500), (1500, 1)])
def test_the_centre_of_a_strip_takes_little_memory(size):
    picture = picture_of(random_image(3, *size))
    centre_crop(picture_of(random_image(3, 8, 8)), 256, 224)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    assert centre_crop(picture, 256, 224).shape == (3, 224, 224)
    assert memory("VmHWM") - before < 64 << 20


def memory(key):
    """Bytes of this process, by a key of /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10
