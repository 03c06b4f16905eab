"""Runs every test body on the CPU, and on a GPU where there is one, with the weight update that GPUs make."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch
from torch import Tensor

from placement import place_single
from runtime.single import SingleRuntime
from tests.small import host_batch, small_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])


def late_runtime(tmp_path: Any, device: str, **keys: Any) -> SingleRuntime:
    """On this device; its weight update waits after it has launched everything, on the CPU as well."""
    runtime = plain_runtime(tmp_path, device, **keys)
    assert runtime.device.type == device
    assert runtime.update.decides_late == (device == "cuda" and runtime.update._stepper.can_skip)
    runtime.update.decides_late = runtime.update._stepper.can_skip
    return runtime


def plain_runtime(tmp_path: Any, device: str = "cpu", **keys: Any) -> SingleRuntime:
    config = small_config(tmp_path, **{"device": device, "compile": "off", **keys})
    return SingleRuntime(config, place_single(config), num_cores=1)


def train(runtime: SingleRuntime, steps: int, first: int = 0) -> Any:
    """Results of so many host steps."""
    config, results = runtime.config, []
    for step in range(first, first + steps):
        batch = host_batch(config, runtime.share, step)
        results.append(runtime.train_step(batch, config.learning_rate or 0.0, step * config.device_iterations))
    return results


def figures(results: Any) -> Any:
    return [value for result in results for value in (result.loss, result.accuracy, result.grad_norm or 0.0)]


def weights_of(runtime: SingleRuntime, averaged: bool = False) -> Dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in runtime.weights(averaged)[0].items()}


def state_of(runtime: SingleRuntime) -> Dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in runtime.optimizer_state()[0].items()}


def assert_equal(actual: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    """To the bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def assert_close(actual: Dict[str, Tensor], expected: Dict[str, Tensor], tolerance: float) -> None:
    """Each tensor's difference against its own size, or against a thousandth of the whole where it is almost zero."""
    assert actual.keys() == expected.keys()
    whole = torch.stack([value.float().norm() for value in expected.values()]).norm()
    for name, value in expected.items():
        error = (actual[name].float() - value.float()).norm()
        assert error <= tolerance * max(value.float().norm(), 1e-3 * whole), f"{name}: {error}"
