"""Augmentation against torchvision's own functions, and as a pure function of the seed."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from batch import DataShare
from dataset.decode import open_picture
from dataset.loader import TrainLoader
from dataset.registry import open_source
from dataset.transforms.affine import inverse_affine, warp
from dataset.transforms.augment import EvalTransform, TrainTransform
from dataset.transforms.policies import transforms_v2
from tests.small import small_config

EVERYTHING = {
    "train_crop_scale": [0.3, 1.0],
    "horizontal_flip": True,
    "extra_aug": "imagenet_policy",
    "rotation": 20,
    "translate": 0.1,
    "shear": 10,
    "zoom": 0.2,
    "crop_padding": 3,
    "color_jitter": 0.4,
    "contrast": 0.5,
    "hue": 0.2,
    "random_erasing": 0.7,
}
NOTHING = {"train_crop_scale": None}


def train_pixels(config, images, seeds):
    """Training images of some decoded ones, [n, C, S, S]."""
    transform = TrainTransform(config)
    draws = [random.Random(seed) for seed in seeds]
    pictures = [open_picture(image, config.num_channels, 10**9) for image in images]
    return transform.finish(torch.stack([transform.cut(*pair) for pair in zip(pictures, draws)]), draws)


def eval_pixels(config, image):
    return EvalTransform(config).cut(open_picture(image, config.num_channels, 10**9))


def random_image(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def smooth_image(size):
    """[3, size, size] without steps between neighbours, so that a small error of place is a small error of value."""
    across = torch.linspace(0, math.pi, size)
    waves = [torch.sin(across * k)[None] * torch.cos(across * k)[:, None] for k in (1, 2, 3)]
    return ((torch.stack(waves) + 1) * 127).to(torch.uint8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 40, 25), (3, 9, 70), (3, 5, 5)])
@pytest.mark.parametrize("keys", [EVERYTHING, NOTHING, {}], ids=["everything", "nothing", "default"])
def test_any_shape_becomes_a_square_of_bytes(tmp_path, keys, shape):
    result = train_pixels(small_config(tmp_path, **keys), [random_image(*shape)], [1])
    assert result.shape == (1, 3, 8, 8)
    assert result.dtype == torch.uint8


def test_a_result_depends_on_its_own_seed_alone(tmp_path):
    config = small_config(tmp_path, **EVERYTHING)
    images = [random_image(3, 20 + n, 30) for n in range(6)]
    together = train_pixels(config, images, range(6))
    torch.manual_seed(5)
    random.seed(5)
    for number, image in enumerate(images):
        assert torch.equal(train_pixels(config, [image], [number])[0], together[number])
    assert not torch.equal(train_pixels(config, [images[0]], [77])[0], together[0])


@pytest.mark.parametrize("key", list(EVERYTHING))
def test_every_key_has_an_effect_of_its_own(tmp_path, key):
    plain = small_config(tmp_path, image_size=16, **NOTHING)
    changed = small_config(tmp_path, image_size=16, **{**NOTHING, key: EVERYTHING[key]})
    image = random_image(3, 16, 16)
    assert torch.equal(train_pixels(plain, [image], [0])[0], image)
    results = train_pixels(changed, [image] * 12, range(12))
    assert len({result.numpy().tobytes() for result in results}) > 1


def test_augmentation_changes_with_epoch_index_and_seed_and_nothing_else(tmp_path):
    keys = {"dataset": "digits", "num_channels": 1, "num_labels": 10, "rotation": 30}

    def image_of_sample(epoch, sample, seed=42):
        config = small_config(tmp_path, **keys, random_seed=seed)
        for batch in TrainLoader(SameImages(config), config, DataShare((0,))).epoch(epoch):
            if sample in batch.targets.tolist():
                return batch.images[batch.targets.tolist().index(sample)].numpy().tobytes()
        raise AssertionError("not in this epoch")

    variants = [image_of_sample(0, 3), image_of_sample(1, 3), image_of_sample(0, 4), image_of_sample(0, 3, seed=43)]
    assert image_of_sample(0, 3) == variants[0]
    assert len(set(variants)) == 4


class SameImages:
    """Forty times the first digit; labels number the samples."""

    class_names = ()
    num_classes = 40
    is_cheap = True
    is_ready = False
    notes = ()

    def __init__(self, config):
        import numpy as np

        self._digit = open_source(config, "train").item(0)
        self.labels = np.arange(40)

    def __len__(self):
        return 40

    def item(self, index):
        return self._digit


def test_mirroring_happens_to_half_of_the_images(tmp_path):
    image = random_image(3, 8, 8)
    results = train_pixels(small_config(tmp_path, **NOTHING, horizontal_flip=True), [image] * 400, range(400))
    mirrored = sum(torch.equal(result, image.flip(-1)) for result in results)
    assert sum(torch.equal(result, image) for result in results) == 400 - mirrored
    assert 160 < mirrored < 240  # four standard deviations


def test_the_crop_keeps_a_share_of_the_area_in_range(tmp_path):
    # Pixel values say which column they come from, so the crop's width can be read from the result.
    columns = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    config = small_config(tmp_path, train_crop_scale=[0.25, 0.25], image_size=8)
    rows = train_pixels(config, [columns] * 50, range(50))[:, 0, 0].float()
    widths = (rows[:, -1] - rows[:, 0]) / 7 * 8
    narrowest, widest = 200 * math.sqrt(0.25 * 3 / 4), 200 * math.sqrt(0.25 * 4 / 3)
    assert narrowest - 3 < widths.min() < narrowest + 12  # 3: rounding to whole pixels and grey levels
    assert widest - 12 < widths.max() < widest + 3


@pytest.mark.parametrize(
    ("angle", "shear", "scale", "shift"),
    [(0, 0, 1, (0, 0)), (30, 0, 1, (0, 0)), (0, 20, 1, (0, 0)), (0, 0, 1.3, (0, 0)), (0, 0, 1, (5, -3)), (-25, 15, 0.8, (4, 2))],
)  # fmt: skip
def test_affine_maps_are_torchvisions(angle, shear, scale, shift):
    functional = transforms_v2().functional
    image = smooth_image(64)
    expected = functional.affine(
        image, angle, list(shift), scale, [shear, 0.0], functional.InterpolationMode.BILINEAR, fill=[128.0] * 3
    )
    map_back = inverse_affine(math.radians(angle), math.radians(shear), scale, (shift[0] / 64, shift[1] / 64))
    found = warp(image[None], [map_back], fill=128)[0]
    # At the rim, torchvision shows no mixture of image and fill.
    mask = warp(torch.full_like(image, 255)[None], [map_back], fill=0)[0]
    away_from_the_rim = (mask == 255) | (mask == 0)
    difference = (found.int() - expected.int())[away_from_the_rim].abs()
    assert away_from_the_rim.float().mean() > 0.9
    assert difference.max() <= 1  # rounding


def test_a_zero_map_changes_nothing_and_fill_is_black_for_grey_images(tmp_path):
    grey = torch.full((1, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(warp(grey[None], [inverse_affine(0, 0, 1, (0, 0))], fill=0)[0], grey)
    shifted = warp(grey[None], [inverse_affine(0, 0, 1, (0.5, 0))], fill=0)[0]
    assert shifted[0, 0].tolist() == [0] * 4 + [200] * 4


@pytest.mark.parametrize(
    ("shape", "resized"), [((3, 48, 64), (32, 42)), ((3, 64, 48), (42, 32)), ((3, 20, 20), (32, 32)), ((3, 32, 99), (32, 99))]
)  # fmt: skip
def test_evaluation_resizes_the_short_side_and_keeps_the_centre(tmp_path, shape, resized):
    functional = transforms_v2().functional
    image = random_image(*shape)
    config = small_config(tmp_path, image_size=28, patches_size=7, eval_crop=0.875)  # short side 32
    expected = functional.center_crop(functional.resize(image, list(resized), antialias=True), [28, 28])
    # torchvision 0.15 resizes floats and rounds them; torch's own resizing of bytes, which later ones use, is up to 1 off.
    tolerance = 1 if version("torchvision").startswith("0.15.") else 0
    torch.testing.assert_close(eval_pixels(config, image), expected, rtol=0, atol=tolerance)


def test_evaluation_without_a_crop_keeps_an_image_of_the_right_size(tmp_path):
    image = random_image(3, 8, 8)
    assert torch.equal(eval_pixels(small_config(tmp_path, eval_crop=1.0), image), image)


def test_torchvision_is_imported_only_where_it_is_used(tmp_path):
    small_config(tmp_path)
    program = (
        "import sys\n"
        "from config import load_config\n"
        "from batch import DataShare\n"
        "from dataset.loader import EvalLoader, TrainLoader\n"
        "from dataset.registry import open_source\n"
        "config = load_config('pretrain', ['--config', 'digits'])\n"
        "next(TrainLoader(open_source(config, 'train'), config, DataShare((0,))).epoch(0))\n"
        "print(sorted({'torchvision', 'sklearn', 'PIL'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
