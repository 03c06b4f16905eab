"""What is not trained keeps its weights to the bit, costs nothing, and the rest is trained as torch trains it."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errors import UserError
from models.architecture import architecture_of
from models.freezing import frozen_units
from models.stages import plan_stages
from models.vit import VisionTransformer, build_model
from placement import place_single
from planning.throughput import work_of
from run_setup import freezing_notes
from runtime.single import SingleRuntime
from tests.small import host_batch, small_config

HEAD = ["head.bias", "head.weight"]
BLOCK_3 = ["blocks.3.norm1.weight", "blocks.3.attn.qkv.weight", "blocks.3.mlp.fc2.bias"]


def trained_run(config: Any, steps: int = 2) -> tuple[SingleRuntime, Dict[str, Tensor]]:
    """A runtime after some steps, and the weights that it began with."""
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    before = {name: value.clone() for name, value in runtime.weights()[0].items()}
    for step in range(steps):
        runtime.train_step(host_batch(config, runtime.share, step), config.learning_rate, step)
    return runtime, before


def changed(runtime: SingleRuntime, before: Dict[str, Tensor]) -> List[str]:
    return sorted(name for name, value in runtime.weights()[0].items() if not torch.equal(value, before[name]))


@pytest.mark.parametrize("precision", ["32.32", "16.16", "16.32", "bf16.16"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "LAMB", "Muon", "Lion"])
def test_frozen_weights_are_equal_to_the_bit_after_training(tmp_path: Any, precision: str, optimizer: str) -> None:
    keys = {"precision": precision, "optimizer": optimizer, "weight_decay": 0.1, "learning_rate": 0.01}
    runtime, before = trained_run(small_config(tmp_path, freeze_layers=3, ema_decay=0.9, **keys))
    found = changed(runtime, before)
    assert set(BLOCK_3 + HEAD) <= set(found)
    assert not [name for name in found if not name.startswith(("blocks.3.", "norm.", "head."))]
    assert {name.rsplit(".", 1)[0] for name in runtime.optimizer_state()[0]} == {
        name for name in before if name.startswith(("blocks.3.", "norm.", "head."))
    }
    averages = runtime.weights(averaged=True)[0]
    assert averages.keys() == before.keys()
    assert all(torch.equal(averages[name], before[name]) for name in before if name not in found)


def test_a_linear_probe_changes_the_classifier_alone(tmp_path: Any) -> None:
    for keys in ({}, {"use_combined_accum": True}, {"distillation": "heads"}, {"representation_size": 8}):
        runtime, before = trained_run(small_config(tmp_path, linear_probe=True, weight_decay=0.1, **keys))
        heads = ["head_dist.bias", "head_dist.weight"] if "distillation" in keys else []
        assert changed(runtime, before) == HEAD + heads


@pytest.mark.parametrize("keys", [{"freeze_layers": 2}, {"freeze_layers": 0}, {"linear_probe": True}])
def test_the_rest_is_trained_as_torch_trains_it(tmp_path: Any, keys: Dict[str, Any]) -> None:
    config = small_config(tmp_path, optimizer="AdamW", learning_rate=0.01, adam_eps=1e-3, **keys)
    runtime, _ = trained_run(config, steps=3)
    model = build_model(architecture_of(config), config.random_seed)
    blocks = tuple(f"blocks.{index}." for index in range(config.freeze_layers or 0, 4))
    trained = ("head.",) if config.linear_probe else (*blocks, "norm.", "head.")
    own = [parameter for name, parameter in model.named_parameters() if name.startswith(trained)]
    optimizer = torch.optim.AdamW(own, lr=0.01, eps=1e-3, weight_decay=0.0)
    for step in range(3):
        batch = host_batch(config, runtime.share, step)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.targets).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(runtime.weights()[0][name], value.detach(), rtol=1e-5, atol=1e-6, msg=name)


def test_frozen_units_run_without_dropout_and_stochastic_depth(tmp_path: Any) -> None:
    noise = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}
    runtime, _ = trained_run(small_config(tmp_path, linear_probe=True, attention="explicit", **noise), steps=0)
    images = host_batch(runtime.config, runtime.share).images
    logits = runtime.model.train()(images)
    assert torch.equal(logits, runtime.model.eval()(images))


def test_a_frozen_prefix_keeps_no_activations(tmp_path: Any) -> None:
    runtime, _ = trained_run(small_config(tmp_path, freeze_layers=4, recompute_checkpoint_every_layer=True), steps=0)
    saved: List[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    images = host_batch(runtime.config, runtime.share).images
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        runtime.model.train()(images)
    tokens = runtime.model.arch.num_tokens
    assert saved and not [tensor.shape for tensor in saved if tensor.dim() == 3 and tensor.shape[1] == tokens]


def test_a_frozen_part_is_planned_without_a_backward_pass(tmp_path: Any) -> None:
    config = small_config(tmp_path, freeze_layers=2)
    arch, frozen = architecture_of(config), frozen_units(config)
    assert frozen == ("embed", "block 0", "block 1")
    first, second = plan_stages([2, 2])
    assert work_of(arch, first, True, frozen).backward == 0
    assert work_of(arch, second, True, frozen) == work_of(arch, second, True)


def test_what_makes_no_sense_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="freeze_layers = 5, but the model has num_hidden_layers = 4"):
        small_config(tmp_path, freeze_layers=5)
    with pytest.raises(UserError, match="freeze_layers = -1: it must be 0 or more"):
        small_config(tmp_path, freeze_layers=-1)


def test_the_user_is_told_what_is_trained_and_what_stays_random(tmp_path: Any) -> None:
    assert freezing_notes(small_config(tmp_path)) == []
    random = "no pretrained_checkpoint is given: the weights that are not trained stay random"
    config = small_config(tmp_path, linear_probe=True)
    sizes = {name: p.numel() for name, p in VisionTransformer(architecture_of(config)).named_parameters()}
    own = sizes["head.weight"] + sizes["head.bias"]
    told = f"trained: the classifier alone, {own:,} of {sum(sizes.values()):,} weights; the rest runs as in evaluation"
    assert freezing_notes(config) == [told, random]
    (note,) = freezing_notes(small_config(tmp_path, freeze_layers=2, pretrained_checkpoint="somewhere"))
    assert note.startswith("trained: all but the embedding and blocks 0-1, ")
