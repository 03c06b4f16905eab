"""Position embeddings on another grid: as timm resizes them, with those of the class token kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (timm imports torchvision)
from timm.layers import resample_abs_pos_embed

from errors import UserError
from models.vit import build_model
from placement import place_single
from runtime.single import SingleRuntime
from tests.small import small_config
from tests.weights import cells, peers
from weights.opening import open_model
from weights.pretrained import load_pretrained, open_pretrained
from weights.resize import resize_positions

GRIDS = [((4, 4), (7, 7)), ((14, 14), (8, 8)), ((3, 5), (6, 4))]


@pytest.mark.parametrize("num_prefix", [1, 2])
@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize(("method", "of_timm"), [("bicubic", ("bicubic", True)), ("linear", ("bilinear", False))])
def test_positions_are_resized_as_timm_does(method, of_timm, old, new, num_prefix) -> None:
    positions = torch.randn(1, num_prefix + old[0] * old[1], 8, generator=torch.Generator().manual_seed(1))
    resized = resize_positions(positions, old, new, num_prefix, method)
    interpolation, antialias = of_timm
    expected = resample_abs_pos_embed(
        positions, list(new), list(old), num_prefix, interpolation=interpolation, antialias=antialias
    )
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
    assert torch.equal(resized[:, :num_prefix], positions[:, :num_prefix])


@pytest.mark.parametrize("method", ["bicubic", "linear"])
def test_a_run_on_larger_images_starts_from_resized_positions_and_says_so(tmp_path: Path, method: str) -> None:
    first = small_config(tmp_path)
    source = tmp_path / "first.safetensors"
    from safetensors.torch import save_file

    weights = SingleRuntime(first, place_single(first), num_cores=1).weights()[0]
    save_file(weights, str(source))
    config = small_config(
        tmp_path, image_size=16, random_seed=9, pretrained_checkpoint=str(source), pos_embed_resize=method
    )
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    notes = load_pretrained(open_pretrained(config), config, runtime)
    assert notes == [f"position embeddings resized from 2x2 to 4x4 patches ({method})"]
    loaded = runtime.weights()[0]
    assert torch.equal(loaded["pos_embed"], resize_positions(weights["pos_embed"], (2, 2), (4, 4), 1, method))
    assert torch.equal(loaded["blocks.1.norm1.bias"], weights["blocks.1.norm1.bias"])


def test_convert_gives_the_model_that_timm_makes_of_it_at_another_size(tmp_path: Path) -> None:
    model = peers.timm_model(peers.TOY)
    peers.save_timm(model, tmp_path / "in")
    cells.run(tmp_path / "in", tmp_path / "out", "--to", "pipevit", "--image-size", "48")
    model.set_input_size(img_size=48)
    assert peers.difference(peers.ours(tmp_path / "out"), model, peers.TOY._replace(image=48)) <= 1e-5


def test_a_size_that_patches_do_not_fill_is_refused(tmp_path: Path) -> None:
    source = cells.start(tmp_path)
    with pytest.raises(UserError, match="--image-size 30 is not a multiple of the patch size, 8x8"):
        cells.run(source, tmp_path / "out", "--to", "pipevit", "--image-size", "30")


def test_heads_of_two_classes_and_positions_of_deit_are_resized_too(tmp_path: Path) -> None:
    peers.deit(peers.TOY, with_teacher=True).save_pretrained(tmp_path / "in")
    cells.run(tmp_path / "in", tmp_path / "out", "--to", "pipevit", "--image-size", "64")
    saved = open_model(str(tmp_path / "out"))
    assert saved.weights.shapes["pos_embed"] == (1, 2 + 64, peers.TOY.width)
    build_model(saved.card.arch, seed=0)
