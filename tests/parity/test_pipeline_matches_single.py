"""The pipeline gives the numbers of the single device: losses, gradients, weights and logits, for plans, schedules, replicas."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor

import machine
from config import Config
from placement import place_pipeline, place_single
from runtime.single import SingleRuntime
from tests.processes import run_processes
from tests.small import host_batch, small_config

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

# fp32 sums in another order: a few roundings of 6e-8.
TOLERANCE = 1e-6
NUM_STEPS = 2

# (layers_per_ipu, schedule, processes of one replica)
PLANS = [
    ([4], "gpipe", 1),
    ([4], "1f1b", 1),
    ([2, 2], "gpipe", 2),
    ([2, 2], "1f1b", 2),
    ([1, 1, 2], "gpipe", 3),
    ([1, 1, 2], "1f1b", 3),
    ([0, 3, 1, 0], "gpipe", 4),
    ([0, 3, 1, 0], "1f1b", 4),
    ([1, 1, 1, 1], "1f1b", 2),  # neighbouring stages folded
    ([1, 1, 1, 1], "interleaved", 2),
    ([0, 2, 1, 1], "interleaved", 2),
    ([0, 1, 1, 1, 1, 0], "interleaved", 2),
    ([0, 1, 1, 1, 1, 0], "interleaved", 3),
]

Outcome = Dict[str, Any]


@pytest.mark.parametrize(("layers_per_ipu", "schedule", "pipeline_size"), PLANS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_losses_gradients_and_logits_equal_the_single_device(
    tmp_path: Any, layers_per_ipu: List[int], schedule: str, pipeline_size: int, replicas: int
) -> None:
    config = small_config(
        tmp_path, layers_per_ipu=layers_per_ipu, schedule=schedule, replication_factor=replicas, runtime="pipeline"
    )
    assert_same(pipeline_outcome(config, pipeline_size * replicas), single_outcome(config))


VARIANTS: List[Tuple[str, Dict[str, Any]]] = [
    ("sum reduction with a loss scale", {"reduction_type": "sum", "loss_scaling": 16.0, "learning_rate": 0.01}),
    ("several device iterations", {"device_iterations": 3}),
    ("mixup", {"mixup": True, "alpha": 0.5}),
    ("CutMix", {"cutmix": True, "device_iterations": 2}),
    ("mixup or CutMix for each image", {"mixup": True, "alpha": 0.5, "cutmix": True, "mix_mode": "sample"}),
    ("several labels an image", {"dataset": "csv", "loss": "SigmoidCELoss", "label_smoothing": 0.1}),
    ("several labels, mixed", {"dataset": "csv", "loss": "SigmoidCELoss", "mixup": True, "alpha": 0.5}),
    ("weighted positives", {"loss": "SigmoidCELoss", "positive_weights": [0.5, 1.0, 2.0, 4.0, 8.0], "dataset": "csv"}),
    ("a mean and deviation for each channel", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}),
    ("dropout and stochastic depth", {"hidden_dropout_prob": 0.2, "drop_path_rate": 0.2, "attention": "explicit"}),
    ("attention dropout", {"attention_probs_dropout_prob": 0.2, "attention": "explicit"}),
    ("clipping", {"max_grad_norm": 0.01}),
    ("replicas folded", {"replication_factor": 4}),
    ("label smoothing", {"label_smoothing": 0.1}),
    ("sigmoid loss", {"loss": "SigmoidCELoss"}),
    ("representation layer", {"representation_size": 12}),
    (
        "recomputation",
        {"recompute_checkpoint_every_layer": True, "recompute_mid_layers": [1], "hidden_dropout_prob": 0.2},
    ),
    ("sharded state", {"enable_rts": True, "device_iterations": 2}),
    ("accumulator and velocity in one", {"use_combined_accum": True, "weight_decay": 0.1, "device_iterations": 2}),
    ("layer-wise rates", {"layer_decay": 0.5}),
    ("distillation token", {"distillation": "token"}),
    ("two heads in a stage of their own", {"distillation": "heads", "layers_per_ipu": [4, 0]}),
]


@pytest.mark.parametrize("overrides", [v for _, v in VARIANTS], ids=[name for name, _ in VARIANTS])
def test_every_rule_of_the_update_holds_in_the_pipeline(tmp_path: Any, overrides: Dict[str, Any]) -> None:
    keys = {"layers_per_ipu": [2, 2], "replication_factor": 2, "runtime": "pipeline", **overrides}
    config = small_config(tmp_path, **keys)
    assert_same(pipeline_outcome(config, 4), single_outcome(config))


# Muon makes directions that are almost 0 as large as the others, so sums over replicas in another order show.
@pytest.mark.parametrize(("optimizer", "replicas"), [("Adam", 1), ("AdamW", 2), ("LAMB", 2), ("Muon", 1)])
def test_optimisers_reach_the_same_weights_in_the_pipeline(tmp_path: Any, optimizer: str, replicas: int) -> None:
    # eps above the rounding noise of zero gradients, which Adam would blow up to whole updates.
    keys = {"optimizer": optimizer, "learning_rate": 0.001, "weight_decay": 0.1, "adam_eps": 1e-3, "enable_rts": True}
    config = small_config(tmp_path, layers_per_ipu=[1, 3], replication_factor=replicas, runtime="pipeline", **keys)
    expected, actual = single_outcome(config), pipeline_outcome(config, 2 * replicas)
    assert_close(actual["weights"], expected["weights"])


HALF = [
    ("16.16", {"auto_loss_scaling": True, "first_order_type": "fp16", "recompute_checkpoint_every_layer": True}),
    ("16.16", {"optimizer": "AdamW", "learning_rate": 1e-3, "accum_type": "fp32", "reduction_type": "sum"}),
    ("16.32", {"auto_loss_scaling": True, "loss_scaling": 1024.0}),
    ("bf16.16", {"use_combined_accum": True}),
]


@pytest.mark.parametrize(("precision", "keys"), HALF, ids=[f"{name} {' '.join(keys)}" for name, keys in HALF])
def test_half_precision_is_the_same_to_the_last_bit_in_stages(
    tmp_path: Any, precision: str, keys: Dict[str, Any]
) -> None:
    config = small_config(
        tmp_path, layers_per_ipu=[1, 2, 1], precision=precision, runtime="pipeline", ema_decay=0.9, **keys
    )
    expected, actual = single_outcome(config), pipeline_outcome(config, 3)
    for key in ("initial", "gradients", "weights", "averages"):
        assert actual[key].keys() == expected[key].keys()
        assert all(torch.equal(actual[key][name], value) for name, value in expected[key].items()), key
    assert actual["scales"] == expected["scales"]
    assert actual["figures"] == pytest.approx(expected["figures"], rel=TOLERANCE)


def test_half_precision_in_replicas_differs_by_rounding_only(tmp_path: Any) -> None:
    """Each process keeps a running mean of its own micro-batches, one device a single one of all."""
    keys = {"precision": "16.16", "auto_loss_scaling": True, "first_order_type": "fp16", "replication_factor": 2}
    config = small_config(tmp_path, layers_per_ipu=[2, 2], runtime="pipeline", enable_rts=True, **keys)
    expected, actual = single_outcome(config), pipeline_outcome(config, 4)
    assert actual["scales"] == expected["scales"]
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        error = (actual["weights"][name].float() - value.float()).norm()
        # A step of fp16 is at most 2^-10 of a number; each update may have taken the other neighbour.
        assert error <= NUM_STEPS * 2**-10 * value.float().norm().clamp(min=0.1), name


def test_bfloat16_compute_differs_by_rounding_only(tmp_path: Any) -> None:
    config = small_config(tmp_path, layers_per_ipu=[2, 2], precision="bf16.32", runtime="pipeline")
    expected, actual = single_outcome(config), pipeline_outcome(config, 2)
    assert actual["initial"].keys() == expected["initial"].keys()
    # The same bf16 operations on the same micro-batches: only the sums of gradients could differ.
    assert_close(actual["gradients"], expected["gradients"])


def test_shipping_bytes_or_not_changes_nothing(tmp_path: Any) -> None:
    first, second = (single_outcome(small_config(tmp_path, byteio=byteio)) for byteio in (False, True))
    assert first["figures"] == second["figures"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


def assert_same(actual: Outcome, expected: Outcome) -> None:
    for name, weight in expected["initial"].items():
        assert torch.equal(actual["initial"][name], weight), f"initial {name}"
    assert actual["figures"] == pytest.approx(expected["figures"], rel=TOLERANCE)
    assert_close(actual["gradients"], expected["gradients"])
    assert_close(actual["weights"], expected["weights"])
    torch.testing.assert_close(actual["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


def assert_close(actual: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    """Each tensor's difference against its own size, or against a thousandth of the whole where it is almost zero."""
    assert actual.keys() == expected.keys()
    whole = torch.stack([value.norm() for value in expected.values()]).norm()
    for name, value in expected.items():
        error = (actual[name] - value).norm()
        assert error <= TOLERANCE * max(value.norm(), 1e-3 * whole), f"{name}: {error} against {value.norm()}"


def single_outcome(config: Config) -> Outcome:
    return merge([run_runtime(SingleRuntime(config, place_single(config), num_cores=1))])


def pipeline_outcome(config: Config, num_processes: int) -> Outcome:
    return merge(run_processes(num_processes, run_pipeline, config))


def run_pipeline(rank: int, config: Config) -> Outcome:
    from runtime.pipeline import PipelineRuntime

    placement = place_pipeline(config, machine.world_size(), 0, 1)
    return run_runtime(PipelineRuntime(config, placement, rank, rank))


def run_runtime(runtime: Any) -> Outcome:
    """Initial weights; one update's gradients (SGD's momentum after one step is the gradient); more steps; logits."""
    config = runtime.config
    outcome: Outcome = {"initial": parts_of(runtime.weights()), "figures": []}
    for step in range(NUM_STEPS):
        batch = host_batch(config, runtime.share, step)
        result = runtime.train_step(batch, config.learning_rate, step * config.device_iterations)
        outcome["figures"] += [result.loss, result.accuracy, result.grad_norm or 0.0]
        outcome["scales"] = [*outcome.get("scales", []), result.loss_scale]
        if step == 0:
            outcome["gradients"] = parts_of(runtime.optimizer_state())
    outcome["weights"], outcome["averages"] = parts_of(runtime.weights()), parts_of(runtime.weights(averaged=True))
    outcome["logits"] = logits_of(runtime)
    runtime.close()
    return outcome


def logits_of(runtime: Any) -> Any:
    images = host_batch(runtime.config, runtime.share).images
    if images is not None:
        images = images[:2].repeat(runtime.eval_batch_size // 2, 1, 1, 1)
    # Replica groups see different images: those of group 0, whose first micro-batch is everyone's, are compared.
    logits = runtime.predict(images)
    return None if logits is None or runtime.eval_share_index else logits[:2]


def parts_of(parts: Dict[int, Dict[str, Tensor]]) -> Dict[str, Tensor]:
    return {name: value.clone() for tensors in parts.values() for name, value in tensors.items()}


def merge(outcomes: List[Outcome]) -> Outcome:
    """What all ranks hold together; figures must be the same in every rank."""
    merged: Outcome = {"figures": outcomes[0]["figures"], "scales": outcomes[0]["scales"]}
    for outcome in outcomes:
        assert outcome["figures"] == outcomes[0]["figures"]
    for key in ("initial", "gradients", "weights", "averages"):
        merged[key] = {name: value for outcome in outcomes for name, value in outcome.get(key, {}).items()}
    merged["logits"] = next(outcome["logits"] for outcome in outcomes if outcome["logits"] is not None)
    return merged
