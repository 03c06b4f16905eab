"""Each augmentation by itself: against torchvision's with the same seed, and by the ranges that its key promises."""

from __future__ import annotations

import colorsys
import math
import random

import numpy as np
import pytest
import torch

from dataset.decode import open_picture
from dataset.transforms.augment import TrainTransform
from dataset.transforms.erasing import random_erasing
from dataset.transforms.policies import transforms_v2
from tests.small import small_config

SIZE = 32
POLICIES = ["imagenet_policy", "cifar_policy", "randaugment", "trivialaugment", "three_augment"]
CRITICAL = 1.95  # of Kolmogorov and Smirnov's statistic, for one in a thousand


def transform_of(tmp_path, num_channels=3, **keys):
    """What the keys do to an image [C, SIZE, SIZE], by a seed."""
    keys = {"image_size": SIZE, "patches_size": 8, "train_crop_scale": None, "num_channels": num_channels, **keys}
    transform = TrainTransform(small_config(tmp_path, **keys))

    def changed(image, seed):
        draw = random.Random(seed)
        cut = transform.cut(open_picture(image, num_channels, 10**9), draw)
        return transform.finish(cut.clone()[None], [draw])[0]

    return changed


def random_image(num_channels=3, low=0, high=256):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(low, high, (num_channels, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def with_default_generator(transform, image, seed):
    """torchvision's transform as one would call it: after `torch.manual_seed`, here with the first draw of an image's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.Random(seed).getrandbits(63))
        return transform(image)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_changes_images_by_their_seed_alone(tmp_path, kind, num_channels):
    change, image = transform_of(tmp_path, num_channels, extra_aug=kind), random_image(num_channels)
    kept = image.clone()
    torch.manual_seed(1)
    results = [change(image, seed) for seed in range(30)]
    assert all(result.shape == image.shape and result.dtype == torch.uint8 for result in results)
    assert len({result.numpy().tobytes() for result in results}) > 5  # three_augment has few for one channel
    torch.manual_seed(2)
    random.seed(2)
    for seed in reversed(range(30)):
        assert torch.equal(change(image, seed), results[seed])
    assert torch.equal(image, kept)


def torchvisions(kind, num_channels):
    v2 = transforms_v2()
    fill = [128.0] * 3 if num_channels == 3 else [0.0]
    return {
        "imagenet_policy": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=fill),
        "cifar_policy": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=fill),
        "randaugment": lambda: v2.RandAugment(num_ops=2, magnitude=9, fill=fill),
        "trivialaugment": lambda: v2.TrivialAugmentWide(fill=fill),
    }[kind]()


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("kind", POLICIES[:4])
def test_a_policy_is_torchvisions_with_the_images_seed(tmp_path, kind, num_channels):
    change, expected = transform_of(tmp_path, num_channels, extra_aug=kind), torchvisions(kind, num_channels)
    image = random_image(num_channels)
    for seed in range(60):
        assert torch.equal(change(image, seed), with_default_generator(expected, image, seed))


@pytest.mark.parametrize(("number", "strength"), [(1, 0), (1, 9), (4, 9), (2, 30)])
def test_randaugment_has_the_number_and_strength_that_the_config_says(tmp_path, number, strength):
    change = transform_of(tmp_path, extra_aug="randaugment", randaugment_n=number, randaugment_m=strength)
    expected = transforms_v2().RandAugment(num_ops=number, magnitude=strength, fill=[128.0] * 3)
    image = random_image()
    results = [change(image, seed) for seed in range(40)]
    for seed, result in enumerate(results):
        assert torch.equal(result, with_default_generator(expected, image, seed))
    if (number, strength) != (2, 9):
        usual = transform_of(tmp_path, extra_aug="randaugment")
        assert any(not torch.equal(usual(image, seed), result) for seed, result in enumerate(results))


def test_three_augment_takes_each_of_its_three_kinds_equally_often(tmp_path):
    change, image = transform_of(tmp_path, extra_aug="three_augment"), random_image()
    red, green, blue = image.float()
    grey = (0.299 * red + 0.587 * green + 0.114 * blue).expand(3, SIZE, SIZE)
    solarised = torch.where(image >= 128, 255 - image, image)
    counts = {"grey": 0, "solarised": 0, "blurred": 0}
    for seed in range(600):
        result = change(image, seed)
        if (result.float() - grey).abs().max() < 1.1:  # torchvision cuts, with weights that add to 0.9999
            counts["grey"] += 1
        elif torch.equal(result, solarised):
            counts["solarised"] += 1
        else:
            counts["blurred"] += 1
            if seed < 60:
                assert 0.1 <= deviation_of_blur(image, result) <= 2.0
    assert sum(counts.values()) == 600
    assert all(abs(count - 200) < 4 * math.sqrt(600 * 2 / 9) for count in counts.values())


def deviation_of_blur(image, blurred):
    """The one with which scipy's Gaussian comes nearest; fails where none comes near."""
    from scipy.ndimage import gaussian_filter

    def difference(deviation):
        expected = gaussian_filter(
            image.double().numpy(), (0, deviation, deviation), mode="mirror", truncate=6 / deviation
        )
        return np.abs(expected - blurred.numpy()).mean()

    nearest = min(np.arange(0.1, 2.001, 0.02), key=difference)
    assert difference(nearest) < 1.5  # rounding to bytes, and half a step of the search
    return nearest


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"color_jitter": 0.4}, (0.4, 0.4, 0.4, 0.0)),
        ({"contrast": 0.5}, (0.0, 0.5, 0.0, 0.0)),
        ({"hue": 0.2}, (0.0, 0.0, 0.0, 0.2)),
        ({"color_jitter": 0.3, "contrast": 0.5, "hue": 0.1}, (0.3, 0.5, 0.3, 0.1)),
        ({"color_jitter": 0.6, "contrast": 0.5}, (0.6, 0.6, 0.6, 0.0)),
    ],
)
def test_colours_change_as_by_torchvisions_colour_jitter(tmp_path, keys, expected, num_channels):
    change, image = transform_of(tmp_path, num_channels, **keys), random_image(num_channels)
    jitter = transforms_v2().ColorJitter(*expected)
    for seed in range(20):
        assert torch.equal(change(image, seed), with_default_generator(jitter, image, seed))


def test_colour_jitter_changes_brightness_by_up_to_its_share(tmp_path):
    # Grey, so that saturation does nothing, and without a value that contrast or brightness could clip.
    image = random_image(1, 80, 120).expand(3, SIZE, SIZE).contiguous()
    change = transform_of(tmp_path, color_jitter=0.4)
    factors = [float(change(image, seed).float().mean() / image.float().mean()) for seed in range(400)]
    assert 0.6 - 0.02 < min(factors) < 0.62  # 0.02: three steps, each cut to whole levels
    assert 1.38 < max(factors) < 1.4
    assert abs(np.mean(factors) - 1) < 4 * 0.8 / math.sqrt(12 * 400) + 0.01


def test_contrast_alone_keeps_the_mean_and_scales_what_differs_from_it(tmp_path):
    image = random_image(1, 80, 120).expand(3, SIZE, SIZE).contiguous()
    change = transform_of(tmp_path, contrast=0.5)
    results = [change(image, seed).float() for seed in range(400)]
    factors = [float(result.std() / image.float().std()) for result in results]
    assert max(abs(result.mean() - image.float().mean()) for result in results) < 1.5  # cut to whole levels, twice
    assert 0.5 - 0.03 < min(factors) < 0.53
    assert 1.47 < max(factors) < 1.5 + 0.03


def test_hue_alone_leaves_grey_images_as_they_are(tmp_path):
    image = random_image(1).expand(3, SIZE, SIZE).contiguous()
    change = transform_of(tmp_path, hue=0.5)
    assert all(torch.equal(change(image, seed), image) for seed in range(20))


def test_hue_turns_colours_by_up_to_its_share_of_the_circle(tmp_path):
    image = torch.tensor([200, 40, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, SIZE, SIZE).contiguous()  # hue 0
    change = transform_of(tmp_path, hue=0.1)
    colours = [change(image, seed)[:, 0, 0].tolist() for seed in range(200)]
    assert {max(colour) for colour in colours} <= {199, 200}
    assert {min(colour) for colour in colours} <= {39, 40, 41}
    turns = [(colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5 for colour in colours]
    assert -0.1 - 0.005 < min(turns) < -0.09
    assert 0.09 < max(turns) < 0.1 + 0.005


def erased(seed, probability=1.0, shape=(3, 40, 60)):
    """The erased rectangle as (top, left, height, width), or None."""
    image = torch.full(shape, 7, dtype=torch.uint8)
    random_erasing(image, random.Random(seed), probability, fill=200)
    rows, columns = ((image[0] == 200).any(side).nonzero().flatten().tolist() for side in (1, 0))
    if not rows:
        assert torch.equal(image, torch.full(shape, 7, dtype=torch.uint8))
        return None
    expected = torch.full(shape, 7, dtype=torch.uint8)
    expected[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 200
    assert torch.equal(image, expected)
    return rows[0], columns[0], len(rows), len(columns)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9, 1.0])
def test_random_erasing_happens_to_its_share_of_the_images(probability):
    count = sum(erased(seed, probability) is not None for seed in range(1000))
    assert abs(count - 1000 * probability) <= 4 * math.sqrt(1000 * probability * (1 - probability))


def test_erased_rectangles_have_torchvisions_distribution():
    transforms_v2()  # makes sure that torchvision can be imported
    from torchvision.transforms import RandomErasing

    image = torch.zeros(3, 40, 60)
    ours = np.array([erased(seed) for seed in range(2000)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = np.array([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0])[:4] for _ in range(2000)])
    shares = ours[:, 2] * ours[:, 3] / 2400
    assert shares.min() > 0.02 - 0.01
    assert shares.max() < 0.33 + 0.02  # sides are rounded
    measures = (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 2] / box[:, 3],
        lambda box: box[:, 0] / (40 - box[:, 2]),
        lambda box: box[:, 1] / (60 - box[:, 3]),
    )
    for measure in measures:
        values = measure(ours), measure(theirs)
        steps = np.sort(np.concatenate(values))
        first, second = (np.searchsorted(np.sort(one), steps, side="right") / 2000 for one in values)
        assert np.abs(first - second).max() < CRITICAL * math.sqrt(2 / 2000)


@pytest.mark.parametrize(("num_channels", "fill"), [(3, 128), (1, 0)])
def test_what_is_erased_is_mid_grey_or_black_in_grey_images(tmp_path, num_channels, fill):
    image = torch.full((num_channels, SIZE, SIZE), 7, dtype=torch.uint8)
    result = transform_of(tmp_path, num_channels, random_erasing=1.0)(image, 0)
    assert set(result.unique().tolist()) == {7, fill}


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("padding", [1, 2])
def test_crop_padding_shifts_to_every_offset_with_a_black_border(tmp_path, padding, num_channels):
    change, image = transform_of(tmp_path, num_channels, crop_padding=padding), random_image(num_channels, low=1)
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    places = range(2 * padding + 1)
    windows = {
        padded[:, top : top + SIZE, left : left + SIZE].tobytes(): (top, left) for top in places for left in places
    }
    counts = dict.fromkeys(windows.values(), 0)
    for seed in range(40 * len(windows)):
        counts[windows[change(image, seed).contiguous().numpy().tobytes()]] += 1
    assert all(abs(count - 40) < 4 * math.sqrt(40) for count in counts.values())


@pytest.mark.parametrize(
    "keys",
    [
        *({"extra_aug": kind} for kind in POLICIES),
        {"color_jitter": 0.4, "contrast": 0.5, "hue": 0.2},
        {"random_erasing": 1.0},
        {"crop_padding": 3},
        {"train_crop_scale": [0.3, 1.0], "horizontal_flip": True},
        {"rotation": 20, "translate": 0.1, "shear": 10, "zoom": 0.2},
    ],
    ids=lambda keys: " ".join(keys.get("extra_aug", "+".join(keys)).split()),
)
def test_the_default_generators_are_left_as_they_were(tmp_path, keys):
    change, image = transform_of(tmp_path, **keys), random_image()
    torch.manual_seed(9)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for seed in range(10):
        change(image, seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("size", [2, 4, 6])
def test_policies_work_on_the_smallest_images(tmp_path, kind, size):
    keys = {"image_size": size, "patches_size": size, "train_crop_scale": None, "extra_aug": kind}
    transform = TrainTransform(small_config(tmp_path, **keys))
    image = random_image()[:, :size, :size]
    for seed in range(12):
        assert transform.cut(open_picture(image, 3, 10**9), random.Random(seed)).shape == (3, size, size)
