"""Augmentation policies and colours, from torchvision's v2 transforms, with draws from an image's own seed."""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional

import torch
from torch import Tensor

if TYPE_CHECKING:
    from config import Config

Step = Callable[[Tensor, random.Random], Tensor]
BLUR_WINDOW = 13  # pixels, for a deviation of up to 2


def extra_policy(config: Config, fill: int) -> Optional[Step]:
    """What `extra_aug` names."""
    kind = config.extra_aug
    if kind is None:
        return None
    if kind == "three_augment":
        return _three_augment
    v2 = transforms_v2()
    fills = [float(fill)] * config.num_channels
    if kind == "randaugment":
        return _seeded(v2.RandAugment(config.randaugment_n, config.randaugment_m, fill=fills))
    if kind == "trivialaugment":
        return _seeded(v2.TrivialAugmentWide(fill=fills))
    policies = {"imagenet_policy": v2.AutoAugmentPolicy.IMAGENET, "cifar_policy": v2.AutoAugmentPolicy.CIFAR10}
    return _seeded(v2.AutoAugment(policies[kind], fill=fills))


def colour_jitter(config: Config) -> Optional[Step]:
    """Brightness, contrast and saturation by factors from 1 - x to 1 + x, hue by up to x of the circle, in random order."""
    strength, contrast, hue = config.color_jitter, max(config.color_jitter, config.contrast), config.hue
    if not (contrast or hue):
        return None
    return _seeded(transforms_v2().ColorJitter(strength, contrast, strength, hue))


def _three_augment(image: Tensor, draw: random.Random) -> Tensor:
    """Grey, solarised or blurred, one of the three (3-Augment of DeiT III, arXiv 2204.07118)."""
    functional = transforms_v2().functional
    kind = draw.randrange(3)
    if kind == 0:
        return functional.rgb_to_grayscale(image, num_output_channels=image.shape[0])
    if kind == 1:
        return functional.solarize(image, threshold=128)
    window = min(BLUR_WINDOW, 2 * min(image.shape[-2:]) - 1)
    return functional.gaussian_blur(image, kernel_size=[window] * 2, sigma=[draw.uniform(0.1, 2.0)] * 2)


def transforms_v2() -> Any:
    """`torchvision.transforms.v2`, imported when first asked for."""
    from dataset.transforms import torchvision_operators  # noqa: F401  (torchvision may need it)

    # isort: split
    import torchvision

    if hasattr(torchvision, "disable_beta_transforms_warning"):
        torchvision.disable_beta_transforms_warning()  # 0.15, the last for Python 3.8, calls v2 a beta
    from torchvision.transforms import v2

    return v2


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
