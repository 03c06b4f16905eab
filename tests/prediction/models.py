"""Tiny saved models and pictures for tests of prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence, Tuple

import numpy as np
import torch
from PIL import Image

from models.architecture import Architecture
from models.vit import build_model
from prediction.answers import Chooser
from prediction.loading import complete
from prediction.predictor import Predictor
from weights.card import ModelCard
from weights.opening import open_model
from weights.tensor_files import part_name, write_index, write_part
from weights.whole_model import load_whole

TINY = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    embed_dim=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    num_labels=4,
    head_bias_init=0.0,
)
NAMES = ("cat", "dog", "hen", "cow")


def save_model(folder: Path, arch: Architecture = TINY, scale: float = 1.0, **card: Any) -> Path:
    """A step folder with drawn weights. A head as drawn says nothing: `scale` is the spread of its logits' weights."""
    folder.mkdir(parents=True)
    model = build_model(arch, seed=7)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head.") or ".attn.qkv" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    write_part(folder / part_name("model", 0, 1), weights)
    write_index(folder, "model", 1)
    card.setdefault("class_names", NAMES if arch.num_labels == len(NAMES) else ())
    (folder / "run.json").write_text(json.dumps({"model": ModelCard(arch, **card).to_json()}))
    return folder


def predictor_of(folder: Path, batch_size: int = 64, max_image_pixels: int = 10**6) -> Predictor:
    saved = open_model(str(folder))
    saved = complete(saved)
    return Predictor(load_whole(saved, torch.device("cpu")), saved.card, max_image_pixels, batch_size)


def chooser_of(predictor: Predictor) -> Chooser:
    return Chooser(predictor.card)


def write_picture(path: Path, number: int = 0, size: Tuple[int, int] = (20, 18)) -> Path:
    """Smooth random colours; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        write_picture(folder / name, number)
