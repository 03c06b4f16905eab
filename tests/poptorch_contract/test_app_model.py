"""What PopTorch is given to compile: blocks on IPUs, checkpoints, the loss, inputs; and what stays off the device."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch

from models.stages import plan_stages, unit_of
from tests.poptorch_contract.outcomes import ipu_runtime
from tests.small import host_batch, small_config


def compiled(poptorch: Any, tmp_path: Any, **keys: Any) -> Any:
    """The reports of the training and the evaluation program."""
    base = {"runtime": "ipu", "layers_per_ipu": [1, 1, 1, 1], "gradient_accumulation": 7}
    config = small_config(tmp_path, **{**base, **keys})
    runtime = ipu_runtime(config)
    runtime.prepare(evaluates=True)
    runtime.train_step(host_batch(config, runtime.share), 0.1, 0)
    return [poptorch.stand_in.report(executor) for executor in poptorch.stand_in.executors()]


PLANS = [[4], [2, 2], [1, 1, 1, 1], [0, 3, 1], [0, 2, 2, 0]]


@pytest.mark.parametrize("layers", PLANS, ids=str)
def test_every_parameter_is_on_the_ipu_of_its_stage(poptorch: Any, tmp_path: Any, layers: List[int]) -> None:
    for report in compiled(poptorch, tmp_path, layers_per_ipu=layers):
        for name, ipus in report.ipus_of_parameter.items():
            (stage,) = [s.index for s in plan_stages(layers) if unit_of(name.replace("vit.", "", 1)) in s.units]
            assert ipus == {stage}, name
        assert report.num_ipus == {1: 1, 2: 2, 3: 4, 4: 4}[len(layers)]  # rounded up to a power of two


@pytest.mark.parametrize("layers", PLANS, ids=str)
def test_stages_are_counted_forward_and_back(poptorch: Any, tmp_path: Any, layers: List[int]) -> None:
    training, evaluation = compiled(poptorch, tmp_path, layers_per_ipu=layers)
    assert (training.num_stages, evaluation.num_stages) == (2 * len(layers) - 1, len(layers))


@pytest.mark.parametrize(
    ("keys", "checkpoints"),
    [
        ({}, {}),
        ({"recompute_checkpoint_every_layer": True}, {0: 1, 1: 1, 2: 1, 3: 1}),
        ({"recompute_checkpoint_every_layer": True, "recompute_mid_layers": [1, 3]}, {0: 1, 1: 2, 2: 1, 3: 2}),
        ({"recompute_mid_layers": [1, 3]}, {}),  # only beside the other key, as on torch runtimes
    ],
    ids=str,
)
def test_layers_are_kept_as_the_config_says(
    poptorch: Any, tmp_path: Any, keys: Dict[str, Any], checkpoints: Dict[int, int]
) -> None:
    training, _ = compiled(poptorch, tmp_path, **keys)
    assert training.checkpoints == checkpoints


def test_the_loss_is_marked_and_returned_for_every_micro_batch(poptorch: Any, tmp_path: Any) -> None:
    training, _ = compiled(poptorch, tmp_path, replication_factor=2, device_iterations=2)
    assert "identity_loss" in training.op_names
    assert "scaled_dot_product_attention" not in training.op_names


def test_pixels_travel_as_bytes_and_mixing_as_one_row_a_micro_batch(poptorch: Any, tmp_path: Any) -> None:
    keys = {"mixup": True, "alpha": 0.5, "device_iterations": 2, "replication_factor": 2, "gradient_accumulation": 3}
    config = small_config(tmp_path, runtime="ipu", **keys)
    runtime = ipu_runtime(config)
    images, targets, mix = runtime._inputs(host_batch(config, runtime.share))
    assert images.dtype == torch.uint8 and images.shape[0] == 2 * 3 * 2 * config.micro_batch_size
    assert targets.shape == (images.shape[0], 3)
    assert mix.shape == (2 * 3 * 2, 1)
    assert len(set(mix[:6].flatten().tolist())) == 1 and mix[0] != mix[6]  # drawn once a weight update


@pytest.mark.parametrize("precision", ["16.16", "16.32", "32.32"])
def test_weights_have_the_type_of_the_precision(poptorch: Any, tmp_path: Any, precision: str) -> None:
    config = small_config(tmp_path, runtime="ipu", precision=precision, gradient_accumulation=2)
    runtime = ipu_runtime(config)
    result = runtime.train_step(host_batch(config, runtime.share), 0.1, 0)
    wanted = torch.float16 if precision == "16.16" else torch.float32
    assert {value.dtype for value in runtime.weights()[0].values()} == {wanted}
    assert 0 < result.loss < 5


@pytest.mark.parametrize("precision", ["16.16", "16.32"])
def test_blocks_multiply_in_half_precision_and_the_head_does_not(
    poptorch: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    import models.products

    seen: Dict[str, Any] = {}
    original = models.products.F.linear

    def spy(x: Any, weight: Any, bias: Any) -> Any:
        seen.setdefault(tuple(weight.shape), set()).add((x.dtype, weight.dtype))
        return original(x, weight, bias)

    monkeypatch.setattr(models.products.F, "linear", spy)
    config = small_config(tmp_path, runtime="ipu", precision=precision, gradient_accumulation=2)
    ipu_runtime(config).prepare(evaluates=False)
    head = seen.pop((config.num_labels, config.hidden_size))
    assert head == {(torch.float32, torch.float32)}
    assert {types for shape in seen.values() for types in shape} == {(torch.float16, torch.float16)}
