"""Predicted bytes beside those of real runs on one device, and of real autograd graphs."""

from __future__ import annotations

from itertools import product
from typing import Any, Dict

import pytest
import torch

from config import load_config
from models.architecture import Architecture, architecture_of
from models.losses import classification_loss
from models.stages import plan_stages
from models.vit import VisionTransformer, build_model
from placement import place
from planning.activations import input_bytes, kept_on, stash_depth, unit_bytes, waiting_bytes, working_bytes
from planning.layout import layout_on
from planning.machines import named_machine, this_machine
from planning.memory import number_sizes, weight_memory
from planning.parameters import parameter_sizes
from planning.stage_memory import stage_memories
from runtime.precision import precision_of
from runtime.replicas import split_over_replicas
from runtime.single import SingleRuntime
from tests.newer_torch import fuses_attention
from tests.small import host_batch, small_config

PRECISIONS = ("32.32", "bf16.32", "16.32", "16.16", "bf16.16")
NEWER: Any = (
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "avg", "fc_norm": True, "num_register_tokens": 2},
    {"layer_scale": 0.1, "prefix_positions": False},
)
OPTIMIZERS = ("SGD", "Adam", "AdamW", "LAMB", "Lion", "Muon")
ROWS = [
    *[{"precision": precision, "optimizer": name} for precision, name in product(("32.32", "16.16"), OPTIMIZERS)],
    {"precision": "16.32", "optimizer": "SGD", "accum_type": "fp32"},
    {"precision": "bf16.16", "optimizer": "AdamW", "first_order_type": "fp16", "second_order_type": "fp16"},
    {"precision": "bf16.32", "optimizer": "LAMB", "ema_decay": 0.9},
    {"precision": "16.16", "optimizer": "SGD", "first_order_type": "fp16", "use_combined_accum": True},
    {"precision": "32.32", "optimizer": "SGD", "use_combined_accum": True},
    {"precision": "16.16", "optimizer": "SGD", "momentum": 0.0},
    {"precision": "16.16", "optimizer": "Muon", "first_order_type": "fp16", "distillation": "heads"},
    {"precision": "32.32", "optimizer": "AdamW", "pos_embed": "sincos2d", "ema_decay": 0.9, "layer_scale": 0.1},
    {"precision": "32.32", "optimizer": "Lion", "representation_size": 12},
    {"precision": "16.16", "optimizer": "AdamW", "freeze_layers": 2},
    {"precision": "32.32", "optimizer": "Adam", "linear_probe": True, "ema_decay": 0.9},
]


def nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("keys", ROWS, ids=[" ".join(map(str, row.values())) for row in ROWS])
def test_weights_gradients_and_state_are_what_a_real_run_holds_to_the_byte(tmp_path, keys: Dict[str, Any]) -> None:
    config = small_config(tmp_path, **keys)
    runtime = SingleRuntime(config, place(config), 1)
    update = runtime.update
    gradients = []
    take = update._accumulation.take

    def seen() -> Any:
        taken = take()
        gradients.append(nbytes(taken.values()))
        return taken

    object.__setattr__(update._accumulation, "take", seen)
    for step in range(2):
        runtime.train_step(host_batch(config, runtime.share, step), 0.01, step)
    units = plan_stages([config.num_hidden_layers])[0].units
    predicted = weight_memory(config, parameter_sizes(architecture_of(config), units), shards=1, on_ipu=False)
    assert predicted.weights == nbytes(update.parameters.values())
    assert predicted.gradients == gradients[-1]
    # Combined, the velocity is the accumulator, counted already.
    assert predicted.state == (0 if config.combines_accumulators else nbytes(update.state().values()))
    averages = update.average.values if update.average else {}
    assert predicted.average == nbytes(averages[name] for name in averages if update.parameters[name].requires_grad)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("half", ["fp16", "fp32"])
def test_numbers_are_as_wide_as_the_runtimes(tmp_path, precision: str, half: str) -> None:
    keys = {"accum_type": half, "first_order_type": half, "second_order_type": half}
    config = small_config(tmp_path, precision=precision, **keys)
    real, sizes = precision_of(config), number_sizes(config)
    wanted = (real.weights, real.accumulators, real.first_order, real.second_order)
    found = (sizes.weight, sizes.gradient, sizes.first_order, sizes.second_order)
    assert found == tuple(torch.empty((), dtype=dtype).element_size() for dtype in wanted)


@pytest.mark.parametrize(
    "keys", [{}, {"distillation": "heads", "representation_size": 8}, {"distillation": "token"}, *NEWER]
)
def test_parameters_are_the_models(keys: Dict[str, Any]) -> None:
    arch = Architecture(
        image_size=(8, 8), patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2, mlp_dim=24, num_labels=5, **keys
    )
    for stage in plan_stages([0, 2, 0]):
        real = {name: value.numel() for name, value in VisionTransformer(arch, stage).named_parameters()}
        assert parameter_sizes(arch, stage.units) == real


@pytest.mark.parametrize("groups", [2, 3])
def test_sharded_state_is_that_of_the_fullest_replica(tmp_path, groups: int) -> None:
    config = small_config(tmp_path, optimizer="AdamW", replication_factor=groups, enable_rts=True)
    arch = architecture_of(config)
    model = build_model(arch, 0)
    owners = split_over_replicas(dict(model.named_parameters()), groups)
    shares = [
        sum(8 * value.numel() + 4 for name, value in model.named_parameters() if owners[name] == group)
        for group in range(groups)
    ]
    sizes = parameter_sizes(arch, model.stage.units)
    assert weight_memory(config, sizes, groups, on_ipu=False).state == max(shares)


def test_state_off_the_chip_takes_none_of_an_ipus_memory(tmp_path) -> None:
    config = small_config(tmp_path, optimizer="AdamW", optimizer_state_offchip=True)
    sizes = parameter_sizes(architecture_of(config), ["block 0"])
    memory = weight_memory(config, sizes, 1, on_ipu=True)
    assert (memory.state, memory.offchip) == (0, weight_memory(config, sizes, 1, on_ipu=False).state)


# Activations: autograd's saved tensors, each memory once, without the weights. The formula leaves out a label's number, masks
# of stochastic depth and the loss itself: some 30 bytes an image.
TOLERANCE = 0.001
KINDS = [
    {},
    {"dropout": 0.1},
    {"attention_dropout": 0.1},
    {"fused_attention": False},
    {"representation_size": 48},
    *NEWER,
    {"recompute": True},
    {"recompute": True, "recompute_mid_layers": (0, 2)},
]


def saved_bytes(arch: Architecture, batch: int) -> int:
    model = build_model(arch, 0).train()
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    saved: Dict[int, int] = {}
    alive = []  # an address must not be used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        classification_loss(model(images), torch.zeros(batch, 1))
    return sum(saved.values())


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(kind, marks=() if {"attention_dropout", "fused_attention"} & set(kind) else fuses_attention)
        for kind in KINDS
    ],
    ids=[" ".join(kind) or "plain" for kind in KINDS],
)
def test_activations_are_what_autograd_saves_in_float32(tmp_path, keys: Dict[str, Any]) -> None:
    arch = Architecture(
        image_size=(32, 32), patch_size=(4, 4), embed_dim=64, depth=4, num_heads=4, mlp_dim=256, num_labels=10, **keys
    )
    kept = kept_on("cpu", small_config(tmp_path, precision="32.32"), arch)
    images = 16  # of fewer, the rows of class tokens are padded: see `models.products.with_rows_enough`
    predicted = images * waiting_bytes(arch, kept, plan_stages([4])[0])
    assert predicted == pytest.approx(saved_bytes(arch, images), rel=TOLERANCE)


def test_recomputing_keeps_the_blocks_inputs_and_works_on_one_block(tmp_path) -> None:
    arch = Architecture(recompute=True, depth=4)
    kept = kept_on("gpu", small_config(tmp_path, precision="bf16.16"), arch)
    middle = plan_stages([1, 2, 1])[1]
    tokens = 197 * 768 * 2
    assert waiting_bytes(arch, kept, middle) == 3 * tokens  # and what it hands on
    assert working_bytes(arch, kept, middle) == unit_bytes(arch, kept, "block 1") - tokens + 2 * 197 * 3072 * 2


def test_more_micro_batches_wait_in_gpipe_than_in_1f1b_and_most_in_the_first_stage(tmp_path) -> None:
    found = {}
    for schedule in ("gpipe", "1f1b", "interleaved"):
        config = small_config(
            tmp_path,
            runtime="pipeline",
            schedule=schedule,
            layers_per_ipu=[1, 1, 1, 1],
            ipus_per_replica=4,
            gradient_accumulation=8,
        )
        layout = layout_on(config, this_machine(0), None)
        found[schedule] = [memory.in_flight for memory in stage_memories(config, layout)]
    assert found["gpipe"] == [8, 8, 8, 8]
    assert found["1f1b"] == [4, 3, 2, 1]
    assert found["interleaved"] == [5, 3]  # parts of 2 processes: warm-up 2 (v - 1) + 2 (p - 1 - r), and one


def test_an_ipu_stashes_for_the_way_there_and_back() -> None:
    assert [stash_depth(stage, 4) for stage in range(4)] == [7, 5, 3, 1]
    config = load_config("plan", ["--config", "b16_imagenet1k"])
    memory = stage_memories(config, layout_on(config, named_machine("pod16", None), None))
    # 3 blocks' inputs, what is between the halves of the middle one, and what goes on: 17 images, fp16. Patches besides.
    tokens = 17 * 197 * 768 * 2
    assert memory[1].waiting == 5 * 5 * tokens
    assert memory[0].waiting == 7 * (5 * tokens + 17 * 196 * 768 * 2)


def test_after_the_last_block_only_the_heads_tokens_are_handed_on(tmp_path) -> None:
    arch = Architecture()
    kept = kept_on("gpu", small_config(tmp_path, precision="32.32"), arch)
    stages = plan_stages([6, 6, 0])
    assert [input_bytes(arch, kept, stage) for stage in stages[1:]] == [197 * 768 * 4, 768 * 4]
