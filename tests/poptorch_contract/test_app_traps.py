"""What is easily written wrong against PopTorch 3.4, name by name and error by error, and is not here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

import runtime as runtime_package
from errors import UserError
from ipu_options import evaluation_options, training_options
from tests.poptorch_contract.outcomes import ipu_runtime
from tests.small import host_batch, small_config

ROOT = Path(runtime_package.__file__).resolve().parents[1]
SOURCES = {path.name: path.read_text() for path in [ROOT / "ipu_options.py", *(ROOT / "runtime").glob("ipu*.py")]}
KEYS: Dict[str, Any] = {"runtime": "ipu", "layers_per_ipu": [1, 3], "gradient_accumulation": 3, "precision": "16.16"}

# Name that is gone or never was; where it would be looked for (None: it is called on something of another kind).
GONE = [
    ("anchorMode", "Options()"),
    ("AnchorMode", ""),
    ("setOverlapForInput", ""),
    ("set_block", ""),
    ("ConvolutionDithering", ""),
    ("autocast", ""),
    ("autocastEnabled", "Options().Precision"),
    ("gradientAccumulation", "Options()"),
    ("automaticLossScaling", "Options()"),
    ("Disabled", "AutoStage"),
    ("configureSessionOptions", "popdist"),
]


def look_up(poptorch: Any, where: str) -> Any:
    if where == "popdist":
        import popdist.poptorch

        return popdist.poptorch
    found = poptorch
    for part in filter(None, where.split(".")):
        found = getattr(found, part[:-2])() if part.endswith("()") else getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "where"), GONE, ids=[name for name, _ in GONE])
def test_a_name_that_poptorch_lacks_is_not_used(poptorch: Any, name: str, where: str) -> None:
    assert not hasattr(look_up(poptorch, where), name)
    if name != "gradientAccumulation":  # which the training options have
        assert not [file for file, text in SOURCES.items() if re.search(rf"\.{name}\b", text)]


def test_gradient_accumulation_is_set_on_the_training_options(poptorch: Any, tmp_path: Any) -> None:
    training_options(small_config(tmp_path, **KEYS))
    names = [call[0] for call in poptorch.stand_in.option_calls()]
    assert "Training.gradientAccumulation" in names and "gradientAccumulation" not in names


def test_an_executor_is_not_taken_for_a_module(poptorch: Any) -> None:
    """`train`, `eval`, `state_dict`, `half` and `parameters` are the user's module's, which it forwards."""
    text = SOURCES["ipu.py"]
    assert not re.search(r"(_trainer|_evaluator|executor)\.(train|eval|state_dict|half|parameters)\b", text)


def test_output_modes_have_the_numbers_of_3_4(poptorch: Any) -> None:
    modes = {mode.name: mode.value for mode in poptorch.OutputMode}
    assert modes == {"Final": 0, "EveryN": 1, "All": 2, "Sum": 3, "Default": 4}


def test_begin_block_gives_the_module_itself(poptorch: Any, tmp_path: Any) -> None:
    vit = ipu_runtime(small_config(tmp_path, **KEYS))._vit
    assert type(vit.patch_embed).__name__ == "PatchEmbed" and type(vit.blocks["1"]).__name__ == "Block"


@pytest.mark.parametrize("half", [True, False])
def test_the_type_of_sgds_velocity_has_its_own_name(poptorch: Any, tmp_path: Any, half: bool) -> None:
    config = small_config(tmp_path, **KEYS, first_order_type="fp16" if half else "fp32")
    assert ipu_runtime(config)._optimizer.velocity_accum_type == (torch.float16 if half else torch.float32)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "LAMB"])
@pytest.mark.parametrize("half", [True, False])
def test_accumulators_and_moments_have_the_types_of_the_config(
    poptorch: Any, tmp_path: Any, kind: str, half: bool
) -> None:
    wanted = torch.float16 if half else torch.float32
    types = dict.fromkeys(("accum_type", "first_order_type", "second_order_type"), "fp16" if half else "fp32")
    optimizer = ipu_runtime(small_config(tmp_path, **KEYS, optimizer=kind, **types))._optimizer
    assert optimizer.accum_type == wanted
    if kind != "SGD":
        assert optimizer.first_order_momentum_accum_type == optimizer.second_order_momentum_accum_type == wanted


def test_32_bit_precision_keeps_32_bits_whatever_the_apps_default_is(poptorch: Any, tmp_path: Any) -> None:
    keys = {**KEYS, "precision": "32.32", "accum_type": "fp16", "first_order_type": "fp16"}
    optimizer = ipu_runtime(small_config(tmp_path, **keys))._optimizer
    assert optimizer.accum_type == optimizer.velocity_accum_type == torch.float32


def test_every_attribute_that_changes_is_variable(poptorch: Any, tmp_path: Any) -> None:
    """PopTorch compiles attributes that were not given into constants, and refuses to change them."""
    for keys in ({}, {"optimizer": "AdamW"}, {"optimizer": "LAMB"}, {"optimizer": "Adam", "auto_loss_scaling": True}):
        poptorch.stand_in.reset()
        config = small_config(tmp_path, **KEYS, **keys)
        runtime = ipu_runtime(config)
        runtime.prepare(evaluates=False)
        optimizer = runtime._optimizer
        optimizer.loss_scaling = 3.0
        for group in optimizer.param_groups:
            group.update(lr=0.5, weight_decay=0.25)
        runtime._trainer.setOptimizer(optimizer)  # raises where one of them is a constant


# Errors of PopTorch, and why the app does not meet them.


@pytest.mark.parametrize("value", [1, 0.5])
def test_whole_numbers_for_fractions_become_fractions(poptorch: Any, tmp_path: Any, value: float) -> None:
    keys = {"auto_loss_scaling": True, "als_threshold": value, "als_bin_edge": value, "matmul_proportion": [value]}
    training_options(small_config(tmp_path, **KEYS, **keys))  # the stand-in checks types exactly


def test_evaluation_has_no_accumulation_and_a_device_iteration_for_each_stage(poptorch: Any, tmp_path: Any) -> None:
    options = evaluation_options(small_config(tmp_path, **KEYS)).toDict()
    assert (options["gradient_accumulation"], options["device_iterations"]) == (1, 2)


def test_too_few_device_iterations_would_be_told(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("ipu_options.eval_device_iterations", lambda config: 1)
    with pytest.raises(
        UserError, match="deviceIterations must be greater than or equal to the number of pipeline stages"
    ):
        ipu_runtime(small_config(tmp_path, **KEYS)).prepare(evaluates=True)


def test_every_host_step_has_the_shapes_that_were_compiled(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS, mixup=True, alpha=0.2, device_iterations=2, replication_factor=2)
    runtime = ipu_runtime(config)
    example, real = runtime._example_step(False), runtime._inputs(host_batch(config, runtime.share))
    assert [(t.shape, t.dtype) for t in example] == [(t.shape, t.dtype) for t in real]
    assert all(tensor.shape[0] % (2 * 3 * 2) == 0 for tensor in real)


def test_there_is_one_loss_and_no_buffer(poptorch: Any, tmp_path: Any) -> None:
    """Buffers that change in the forward pass would need broadcastBuffers(False) with several replicas."""
    runtime = ipu_runtime(small_config(tmp_path, **KEYS, replication_factor=2))
    assert list(runtime._vit.buffers()) == []
    runtime.prepare(evaluates=False)
    assert poptorch.stand_in.report(runtime._trainer).op_names.count("identity_loss") == 1


def test_the_mean_of_the_loss_without_its_mark_would_be_refused(poptorch: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("runtime.ipu_model.poptorch.identity_loss", lambda x, reduction: x)
    with pytest.raises(UserError, match="PopTorch cannot compile this plan"):
        ipu_runtime(small_config(tmp_path, **KEYS)).prepare(evaluates=False)


def test_weights_can_be_read_and_saved_before_anything_is_compiled(poptorch: Any, tmp_path: Any) -> None:
    runtime = ipu_runtime(small_config(tmp_path, **KEYS))
    assert runtime.weights()[0].keys() == runtime.parameter_names().keys()
    assert runtime.optimizer_state() == {0: {}}
    runtime.close()


def test_preparing_twice_wraps_the_model_once(poptorch: Any, tmp_path: Any) -> None:
    runtime = ipu_runtime(small_config(tmp_path, **KEYS))
    for _ in range(2):
        runtime.prepare(evaluates=True)
    assert len(poptorch.stand_in.executors()) == 2


@pytest.mark.parametrize("precision", ["16.16", "16.32"])
def test_automatic_loss_scaling_finds_gradients_of_16_bits(poptorch: Any, tmp_path: Any, precision: str) -> None:
    config = small_config(tmp_path, **{**KEYS, "precision": precision}, auto_loss_scaling=True)
    runtime = ipu_runtime(config)
    assert runtime.train_step(host_batch(config, runtime.share), 0.01, 0).loss > 0
