"""What the model sees is what validation cuts, and what Hugging Face and timm prepare for their models."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (timm imports torchvision)
import timm.data
import transformers

from dataset.base import read_file
from dataset.decode import open_picture
from models.architecture import Architecture
from prediction.view import view_of
from tests.prediction.models import write_picture
from weights.card import ModelCard

SIZES = [(300, 200), (133, 211), (96, 96), (40, 50)]


def card(size: Tuple[int, int] = (96, 96), **details: object) -> ModelCard:
    return ModelCard(Architecture(image_size=size, patch_size=(16, 16)), **details)  # type: ignore[arg-type]


def seen(path: Path, model: ModelCard) -> Tensor:
    return view_of(model)(open_picture(read_file(str(path)), 3, 10**9))


@pytest.mark.parametrize("size", SIZES)
def test_squashed_pictures_are_those_of_hugging_face(tmp_path: Path, size: Tuple[int, int]) -> None:
    path = write_picture(tmp_path / "x.png", size=size)
    # The one with Pillow, where there is one without, too.
    kind = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    processor = kind(size={"height": 96, "width": 96}, resample=2, do_rescale=False, do_normalize=False)
    theirs = np.asarray(processor(Image.open(path), return_tensors="np")["pixel_values"][0])
    assert np.array_equal(seen(path, card(squash=True, eval_crop=1.0)).numpy(), theirs.astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_squashed_and_cropped_pictures_are_those_of_deit(tmp_path: Path, size: Tuple[int, int]) -> None:
    path = write_picture(tmp_path / "x.png", size=size)
    kind = getattr(transformers, "DeiTImageProcessorPil", transformers.DeiTImageProcessor)
    sides = {"size": {"height": 128, "width": 128}, "crop_size": {"height": 96, "width": 96}}
    processor = kind(**sides, resample=3, do_rescale=False, do_normalize=False)
    theirs = np.asarray(processor(Image.open(path), return_tensors="np")["pixel_values"][0])
    model = card(squash=True, eval_crop=0.75, interpolation="bicubic")
    assert np.array_equal(seen(path, model).numpy(), theirs.astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.9, 1.0, 0.875])
def test_bicubic_pictures_are_those_of_timm(tmp_path: Path, size: Tuple[int, int], share: float) -> None:
    path = write_picture(tmp_path / "x.png", size=size)
    prepare = timm.data.create_transform(
        (3, 96, 96), interpolation="bicubic", crop_pct=share, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    theirs = (prepare(Image.open(path)) * 255).round().to(torch.uint8)
    assert torch.equal(seen(path, card(interpolation="bicubic", eval_crop=share)), theirs)


def test_a_picture_for_a_model_that_is_not_square_keeps_its_shape(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "x.png", size=(200, 100))
    whole = np.asarray(Image.open(path).resize((96, 48), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(seen(path, card(size=(48, 96), eval_crop=1.0)).numpy(), whole)
    assert np.array_equal(seen(path, card(size=(48, 32), eval_crop=1.0)).numpy(), whole[:, :, 32:64])


def test_a_strip_is_cut_before_it_is_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (60_000, 1)).save(path)
    assert seen(path, card(interpolation="bicubic")).shape == (3, 96, 96)
