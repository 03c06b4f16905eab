"""DeiT's second token: stages, counts and gradients as for the first. Numbers against timm and Hugging Face: tests/weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.architecture import Architecture, count_forward_flops, count_parameters
from models.stages import plan_stages
from models.vit import build_model
from placement import place_single
from runtime.single import SingleRuntime
from tests.small import host_batch, small_config

ARCH = Architecture(
    image_size=(16, 16), patch_size=(8, 8), embed_dim=32, depth=4, num_heads=4, mlp_dim=48, num_labels=5
)
KINDS = ["token", "heads"]


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("distillation", KINDS)
@pytest.mark.parametrize("layers", [[1, 3], [2, 2], [0, 3, 1], [4, 0]])
def test_stages_in_sequence_match_the_whole_model(distillation: str, layers: list) -> None:
    arch = replace(ARCH, distillation=distillation)
    x = pixels()
    for stage in plan_stages(layers):
        x = build_model(arch, seed=1, stage=stage).eval()(x)
    assert torch.equal(x, build_model(arch, seed=1).eval()(pixels()))


@pytest.mark.parametrize("distillation", KINDS)
def test_parameters_and_flops_are_counted_with_the_token(distillation: str) -> None:
    arch = replace(ARCH, distillation=distillation, fused_attention=False)
    for stage in plan_stages([1, 2, 1]):
        model = build_model(arch, seed=0, stage=stage)
        counted = sum(count_parameters(arch, unit) for unit in stage.units)
        assert counted == sum(parameter.numel() for parameter in model.parameters())
    flop_counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.0 does not count operations")
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
        build_model(arch, seed=0).eval()(pixels(1))
    units = [unit for stage in plan_stages([4]) for unit in stage.units]
    assert counter.get_total_flops() == sum(count_forward_flops(arch, unit) for unit in units)


def test_logits_of_two_heads_are_their_mean_in_training_as_well() -> None:
    model = build_model(replace(ARCH, distillation="heads"), seed=1)
    mean = model.train()(pixels())
    torch.testing.assert_close(mean, model.eval()(pixels()))
    with torch.no_grad():
        model.head_dist.bias.add_(2.0)
    torch.testing.assert_close(model(pixels()), mean + 1.0)


@pytest.mark.parametrize("distillation", KINDS)
def test_a_model_with_the_token_trains(tmp_path: Path, distillation: str) -> None:
    config = small_config(tmp_path, distillation=distillation)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    losses = [runtime.train_step(host_batch(config, runtime.share), 0.1, step).loss for step in range(6)]
    assert losses[-1] < losses[0]
    assert "dist_token" in runtime.weights()[0]
