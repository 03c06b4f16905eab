"""Random changes of training images, and the plain cut of evaluation images.

Every draw of an image comes from its own seed: `random.Random` where the maths is here, torch's default generator, seeded and put
back, where it is torchvision's. torchvision takes 2 s to import and is imported only by who resizes, crops or uses its policy.
"""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from config import Config

FILL = 128  # mid-grey, as AutoAugment's policy was searched with

Step = Callable[[Tensor, random.Random], Tensor]
Coefficients = Tuple[float, float, float, float, float, float]


class TrainTransform:
    """Crop, mirror, policy, affine: those that the config asks for, in this order.

    n images uint8 [C, h, w] of any sizes, and a seed for each, to uint8 [n, C, image_size, image_size]. An image's result
    depends on its own seed alone, not on which others come with it.
    """

    def __init__(self, config: Config) -> None:
        self._steps: List[Step] = [_crop(config)]
        if config.horizontal_flip:
            self._steps.append(_flip)
        if config.extra_aug == "imagenet_policy":
            self._steps.append(_imagenet_policy())
        is_affine = any((config.rotation, config.translate, config.shear, config.zoom))
        self._affine = RandomAffine(config) if is_affine else None

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        draws = [random.Random(seed) for seed in seeds]
        batch = torch.stack([self._one(image, draw) for image, draw in zip(images, draws)])
        return self._affine(batch, draws) if self._affine is not None else batch

    def _one(self, image: Tensor, draw: random.Random) -> Tensor:
        for step in self._steps:
            image = step(image, draw)
        return image


class EvalTransform:
    """Resizes the short side to image_size / eval_crop and keeps the centre.

    n images uint8 [C, h, w] of any sizes to uint8 [n, C, image_size, image_size].
    """

    def __init__(self, config: Config) -> None:
        self._size = config.image_size
        self._short_side = round(config.image_size / config.eval_crop)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack([centre_crop(resize_short_side(image, self._short_side), self._size) for image in images])


def resize_short_side(image: Tensor, size: int) -> Tensor:
    """Resizes to a short side of `size` pixels, keeping the proportions; bilinear, antialiased."""
    if min(image.shape[-2:]) == size:
        return image
    return transforms_v2().functional.resize(image, [size], antialias=True)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` pixels, placed as torchvision places them."""
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def transforms_v2() -> Any:
    """`torchvision.transforms.v2`, imported when first asked for."""
    from dataset import torchvision_operators  # noqa: F401  (torchvision may need it)

    # isort: split
    import torchvision

    if hasattr(torchvision, "disable_beta_transforms_warning"):
        torchvision.disable_beta_transforms_warning()  # 0.15, the last for Python 3.8, calls v2 a beta
    from torchvision.transforms import v2

    return v2


def _crop(config: Config) -> Step:
    size = config.image_size
    if config.train_crop_scale is None:
        return partial(_centre, size=size)
    return _seeded(transforms_v2().RandomResizedCrop(size, scale=tuple(config.train_crop_scale), antialias=True))


def _centre(image: Tensor, draw: random.Random, size: int) -> Tensor:
    return centre_crop(resize_short_side(image, size), size)


def _flip(image: Tensor, draw: random.Random) -> Tensor:
    return image.flip(-1) if draw.random() < 0.5 else image


def _imagenet_policy() -> Step:
    v2 = transforms_v2()
    return _seeded(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=FILL))


def _seeded(transform: Callable[[Tensor], Tensor]) -> Step:
    """A torchvision transform whose draws come from the image's seed."""
    return partial(_with_seed, transform=transform)


def _with_seed(image: Tensor, draw: random.Random, transform: Callable[[Tensor], Tensor]) -> Tensor:
    with _default_generator(draw.getrandbits(63)):
        return transform(image)


@contextmanager
def _default_generator(seed: int) -> Iterator[None]:
    """Seeds torch's default generator for a while. (`torch.manual_seed` would cost 250 us, for other devices' sake.)"""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


class RandomAffine:
    """Rotation, zoom, shear along x and shift about the centre of square images; bilinear.

    The ranges are those of torchvision's RandomAffine, but shifts are not rounded to whole pixels: small images need that.
    What comes into view is mid-grey in colour images, black in grey ones.
    """

    def __init__(self, config: Config) -> None:
        self._rotation, self._shear = math.radians(config.rotation), math.radians(config.shear)
        self._zoom, self._translate = config.zoom, config.translate
        self._fill = FILL if config.num_channels == 3 else 0

    def __call__(self, batch: Tensor, draws: Sequence[random.Random]) -> Tensor:
        return warp(batch, [self._draw(draw) for draw in draws], self._fill)

    def _draw(self, draw: random.Random) -> Coefficients:
        angle = draw.uniform(-self._rotation, self._rotation)
        shear = draw.uniform(-self._shear, self._shear)
        scale = draw.uniform(1 - self._zoom, 1 + self._zoom)
        shift = draw.uniform(-self._translate, self._translate), draw.uniform(-self._translate, self._translate)
        return inverse_affine(angle, shear, scale, shift)


def inverse_affine(angle: float, shear: float, scale: float, shift: Tuple[float, float]) -> Coefficients:
    """(a, b, c, d, e, f): what is seen at (x, y) comes from (a x + b y + c, d x + e y + f), the image spanning [-1, 1].

    The forward map shears along x, turns clockwise by `angle`, both in radians, scales, and shifts by shares of the side.
    """
    cos, sin, tan = math.cos(angle) / scale, math.sin(angle) / scale, math.tan(shear)
    a, b, d, e = cos - tan * sin, sin + tan * cos, -sin, cos
    x, y = 2 * shift[0], 2 * shift[1]
    return a, b, -(a * x + b * y), d, e, -(d * x + e * y)


def warp(batch: Tensor, coefficients: Sequence[Coefficients], fill: int) -> Tensor:
    """uint8 [n, C, S, S], each image seen through an affine map of its own."""
    a, b, c, d, e, f = torch.tensor(coefficients).t().reshape(6, -1, 1, 1)
    across = (torch.arange(batch.shape[-1]) * 2 + 1) / batch.shape[-1] - 1  # pixel centres
    down = across.view(-1, 1)
    # Written out: a matrix product may round differently with other batch sizes or thread counts.
    grid = torch.stack((across * a + c + down * b, across * d + f + down * e), dim=-1)  # [n, S, S, 2]
    warped = F.grid_sample(batch.float().sub_(fill), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.add_(fill).round_().to(torch.uint8)
