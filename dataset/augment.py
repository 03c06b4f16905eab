"""What happens to an image between its source and the model: crops, flips, affine changes, policies. Pixels stay uint8.

Every random draw of a training sample comes from the sample's seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import dataset.torchvision_operators  # noqa: F401  # isort: skip  (before torchvision)
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config

FILL = 128  # grey, as the reference recipes fill what a geometric change uncovers


def to_channels(image: Tensor, channels: int) -> Tensor:
    """uint8 [C, H, W] with the number of channels that the model takes: grey is repeated, colour made grey."""
    if image.shape[0] == channels:
        return image
    if channels == 1:
        return functional.rgb_to_grayscale(image[:3])
    return image[:1].expand(channels, -1, -1) if image.shape[0] < 3 else image[:channels]


class TrainTransform:
    """Random crop, flip, policy and affine change of a config: images and their seeds -> uint8 [n, C, side, side].

    An image's result depends on its own seed alone, not on which others are transformed with it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._size = [config.image_size, config.image_size]
        scale = config.train_crop_scale
        self._random_crop = v2.RandomResizedCrop(self._size, scale=scale, antialias=True) if scale else None
        self._policy = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=FILL) if config.extra_aug else None
        self._draws = scale is not None or config.horizontal_flip or config.extra_aug is not None
        self._is_affine = max(config.rotation, config.translate, config.shear, config.zoom) > 0

    def __call__(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Tensor:
        batch = torch.stack([self._transform(image, seed) for image, seed in zip(images, seeds)])
        return self._affine(batch, seeds) if self._is_affine else batch

    def _transform(self, image: Tensor, seed: int) -> Tensor:
        if self._draws:
            torch.manual_seed(seed)  # torchvision draws from torch's default generator
        image = to_channels(image, self._config.num_channels)
        image = self._random_crop(image) if self._random_crop is not None else resize(image, self._size)
        if self._config.horizontal_flip and float(torch.rand(())) < 0.5:
            image = image.flip(-1)
        return self._policy(image) if self._policy is not None else image

    def _affine(self, batch: Tensor, seeds: Sequence[int]) -> Tensor:
        """Rotation, shift, shear and zoom of a whole batch in one bilinear pass: image by image it costs ten times as much."""
        config = self._config
        generators = [torch.Generator().manual_seed(derive_seed("affine", seed)) for seed in seeds]
        draws = torch.stack([torch.rand(5, generator=generator) for generator in generators]) * 2 - 1
        limits = [math.radians(config.rotation), math.radians(config.shear), config.zoom, 2 * config.translate]
        angle, shear, zoom = (draws[:, column] * limits[column] for column in range(3))
        matrices = _inverse_matrices(angle, shear, 1 + zoom, draws[:, 3:] * limits[3])
        grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
        fill = FILL if config.num_channels == 3 else 0
        moved = F.grid_sample(batch.float() - fill, grid, mode="bilinear", align_corners=False) + fill
        return moved.round_().clamp_(0, 255).to(torch.uint8)


def _inverse_matrices(angle: Tensor, shear: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """[n, 2, 3]: where each output pixel comes from, in coordinates from -1 to 1. Angles in radians [n], shift [n, 2]."""
    rows = [torch.cos(angle), -torch.sin(angle + shear), torch.sin(angle), torch.cos(angle + shear)]
    inverse = torch.linalg.inv(torch.stack(rows, dim=1).view(-1, 2, 2) * scale.view(-1, 1, 1))
    return torch.cat([inverse, -inverse @ shift.unsqueeze(2)], dim=2)


class EvalTransform:
    """Short side to image_size / eval_crop, then the centre: images -> uint8 [n, C, image_size, image_size]."""

    def __init__(self, config: Config) -> None:
        self._channels = config.num_channels
        self._side = config.image_size
        self._short_side = round(config.image_size / config.eval_crop)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._transform(image) for image in images])

    def _transform(self, image: Tensor) -> Tensor:
        image = to_channels(image, self._channels)
        height, width = image.shape[-2:]
        scale = self._short_side / min(height, width)
        image = resize(image, [max(self._side, round(height * scale)), max(self._side, round(width * scale))])
        return functional.center_crop(image, [self._side, self._side])


def resize(image: Tensor, size: List[int]) -> Tensor:
    """Antialiased bilinear, as torchvision's classification recipes; nothing to do where the size is right."""
    return image if list(image.shape[-2:]) == size else functional.resize(image, size, antialias=True)
