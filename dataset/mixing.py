"""How images of a weight update are mixed: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), drawn on the host.

Drawn by every process for itself, as a function of (seed, weight update): the first stage mixes pixels, the last labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config


class Mix(NamedTuple):
    """For n images, how much of each is its own; the rest is its predecessor's in the micro-batch.

    `images` float32 [n, 1]: the weight of its own pixels. With CutMix [n, 5]: that, and the rectangle that is the predecessor's
    alone: top, bottom, left, right in pixels, bottom and right exclusive. `labels` float32 [n]: the weight of its own label.
    """

    images: Tensor
    labels: Tensor


def draw_mix(config: Config, update: int, replicas: Sequence[int]) -> Mix:
    """The mix of weight update number `update`, for the images of some replicas in the layout [accumulation][replica][micro]."""
    count = config.global_batch_size if config.mix_mode == "sample" else 1
    generator = np.random.default_rng(derive_seed(config.random_seed, "mixup", update))
    weights, boxes = np.ones(count), np.zeros((count, 4), dtype=np.int64)
    if config.mixup:
        assert config.alpha is not None, "the config checks it"
        weights = generator.beta(config.alpha, config.alpha, size=count)
    if config.cutmix:
        pasted = generator.random(count) < (config.mix_switch_probability if config.mixup else 1.0)
        boxes[pasted] = _boxes(generator, count, config)[pasted]
        weights[pasted] = 1.0
    left_alone = generator.random(count) >= config.mix_probability
    weights[left_alone], boxes[left_alone] = 1.0, 0
    shares = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / config.image_size**2
    images = np.concatenate([weights[:, None], boxes], axis=1) if config.cutmix else weights[:, None]
    return Mix(_own(images, config, replicas), _own(weights * (1.0 - shares), config, replicas))


def _boxes(generator: np.random.Generator, count: int, config: Config) -> np.ndarray:
    """[count, 4]: rectangles of the image's proportions around a random centre, cut at its border."""
    size = config.image_size
    sides = size * np.sqrt(1.0 - generator.beta(config.cutmix_alpha, config.cutmix_alpha, size=count))
    centres = generator.integers(0, size, size=(2, count))
    begins, ends = (np.clip(np.rint(centres + sign * sides / 2), 0, size).astype(np.int64) for sign in (-1, 1))
    return np.stack([begins[0], ends[0], begins[1], ends[1]], axis=1)


def _own(values: np.ndarray, config: Config, replicas: Sequence[int]) -> Tensor:
    """The rows of the images of some replicas; one row stands for all images."""
    tensor = torch.from_numpy(values).float()
    if len(tensor) == 1:
        own = config.gradient_accumulation * len(replicas) * config.micro_batch_size
        return tensor.expand(own, *tensor.shape[1:])
    layout = tensor.view(
        config.gradient_accumulation, config.replication_factor, config.micro_batch_size, *tensor.shape[1:]
    )
    return layout[:, list(replicas)].flatten(0, 2)
