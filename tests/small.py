"""A real config of a tiny model, and generated data for it, for tests."""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
from torch import Tensor

from batch import DataShare, HostBatch
from config import Config, load_config
from dataset.mixing import draw_mix

TINY_CONFIGS = """
tiny:
  dataset: generated
  image_size: 8
  patches_size: 4
  hidden_size: 16
  num_hidden_layers: 4
  num_attention_heads: 2
  mlp_dim: 32
  num_labels: 5
  micro_batch_size: 2
  gradient_accumulation: 4
  optimizer: SGD
  learning_rate: 0.1
  momentum: 0.9
  precision: "32.32"
  drop_path_rate: 0.0
  training_steps: 3
  device: cpu
  runtime: single
  checkpoint_output_dir: ""
"""


def small_config(tmp_path: Any, command: str = "finetune", **overrides: Any) -> Config:
    """The tiny config with some keys changed, read from a file in `tmp_path` as a user's would be."""
    import yaml

    configs = yaml.safe_load(TINY_CONFIGS)
    configs["tiny"].update(overrides)
    path = tmp_path / "configs.yaml"
    path.write_text(yaml.safe_dump(configs))
    return load_config(command, ["--config", "tiny", "--config-file", str(path)])


def num_bytes(tensor: Tensor) -> int:
    """`tensor.nbytes`, which came with torch 2.1."""
    return tensor.numel() * tensor.element_size()


def host_batch(config: Config, share: DataShare, step: int = 0) -> HostBatch:
    """A share of one host step of random images, the same whole batch for every share."""
    images, labels = _whole_batch(config, step)
    rows = _rows_of(config, share)
    images_of_share, targets = images[rows] if share.images else None, labels[rows] if share.targets else None
    if not (config.mixup or config.cutmix):
        return HostBatch(0, step, images_of_share, targets)
    updates = range(step * config.device_iterations, (step + 1) * config.device_iterations)
    parts = [draw_mix(config, update, share.replicas) for update in updates]
    return HostBatch(0, step, images_of_share, targets, *(torch.cat(columns) for columns in zip(*parts)))


def _whole_batch(config: Config, step: int) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (config.samples_per_step, config.num_channels, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if config.dataset == "csv":  # whose images may have several labels
        kinds = (config.samples_per_step, config.num_labels)
        return images, torch.randint(0, 2, kinds, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, config.num_labels, (config.samples_per_step,), generator=generator)


def _rows_of(config: Config, share: DataShare) -> List[int]:
    """Rows of the layout [device iteration][accumulation][replica][micro] that belong to a share."""
    layout = torch.arange(config.samples_per_step).view(-1, config.replication_factor, config.micro_batch_size)
    return layout[:, list(share.replicas)].flatten().tolist()
