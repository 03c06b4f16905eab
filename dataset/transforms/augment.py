"""Random changes of training images, and the plain cut of evaluation images.

Every draw of an image comes from its own seed: `random.Random` where the maths is here, torch's default generator, seeded and put
back, where it is torchvision's. torchvision takes 2 s to import and is imported only by who uses its policies and colours.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Callable, List, Optional, Sequence

import torch.nn.functional as F
from torch import Tensor

from dataset.decode import Picture
from dataset.transforms.affine import RandomAffine, fill_value
from dataset.transforms.crop import centre_crop, random_box, resized_crop
from dataset.transforms.erasing import random_erasing
from dataset.transforms.policies import colour_jitter, extra_policy

if TYPE_CHECKING:
    from config import Config

Crop = Callable[[Picture, random.Random], Tensor]
Step = Callable[[Tensor, random.Random], Tensor]


class TrainTransform:
    """Crop, mirror, policy, colours, affine, erasing: those that the config asks for, in this order.

    A picture's result, uint8 [C, image_size, image_size], depends on its own seed alone, not on which others come with it.
    """

    def __init__(self, config: Config) -> None:
        self._crop = _crop_of(config)
        self._steps = _steps_of(config)
        is_affine = any((config.rotation, config.translate, config.shear, config.zoom))
        self._affine = RandomAffine(config) if is_affine else None
        self._erasing = config.random_erasing
        self._fill = fill_value(config.num_channels)

    def cut(self, picture: Picture, draw: random.Random) -> Tensor:
        """One picture's crop, mirrored and recoloured: uint8 [C, image_size, image_size]. Raises BadImageError."""
        image = self._crop(picture, draw)
        for step in self._steps:
            image = step(image, draw)
        return image

    def finish(self, batch: Tensor, draws: Sequence[random.Random]) -> Tensor:
        """The steps that are faster for many images at once: uint8 [n, C, S, S] to the same, with the draws that `cut` had."""
        if self._affine is not None:
            batch = self._affine(batch, draws)
        if self._erasing:
            for image, draw in zip(batch, draws):
                random_erasing(image, draw, self._erasing, self._fill)
        return batch


class EvalTransform:
    """Resizes the short side to image_size / eval_crop and keeps the centre."""

    def __init__(self, config: Config) -> None:
        self._size = config.image_size
        self._short_side = int(config.image_size / config.eval_crop)  # rounded down, as timm's and transformers'
        self._method = config.interpolation

    def cut(self, picture: Picture) -> Tensor:
        """uint8 [C, image_size, image_size]. Raises BadImageError."""
        return centre_crop(picture, self._short_side, self._size, self._method)


def _crop_of(config: Config) -> Crop:
    if config.train_crop_scale is None:
        return partial(_whole, size=config.image_size, method=config.interpolation)
    return partial(_random_crop, size=config.image_size, scale=config.train_crop_scale, method=config.interpolation)


def _whole(picture: Picture, draw: random.Random, size: int, method: str) -> Tensor:
    return centre_crop(picture, size, size, method)


def _random_crop(picture: Picture, draw: random.Random, size: int, scale: tuple[float, float], method: str) -> Tensor:
    return resized_crop(picture, random_box(picture.size, scale, draw), size, method)


def _steps_of(config: Config) -> List[Step]:
    fill = fill_value(config.num_channels)
    steps: List[Optional[Step]] = [
        partial(_shift, padding=config.crop_padding) if config.crop_padding else None,
        _flip if config.horizontal_flip else None,
        extra_policy(config, fill),
        colour_jitter(config),
    ]
    return [step for step in steps if step is not None]


def _shift(image: Tensor, draw: random.Random, padding: int) -> Tensor:
    """A crop of the same size out of the image with a black border (torchvision's RandomCrop with padding, for CIFAR)."""
    size = image.shape[-1]
    top, left = draw.randint(0, 2 * padding), draw.randint(0, 2 * padding)
    return F.pad(image, [padding] * 4)[:, top : top + size, left : left + size]


def _flip(image: Tensor, draw: random.Random) -> Tensor:
    return image.flip(-1) if draw.random() < 0.5 else image
