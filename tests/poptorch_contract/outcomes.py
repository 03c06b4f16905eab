"""A few host steps of a runtime, and all that they leave, for tests that compare runtimes."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from config import Config
from placement import place_ipu, place_single
from runtime.single import SingleRuntime
from tests.small import host_batch

Outcome = Dict[str, Any]


def ipu_runtime(config: Config) -> Any:
    from runtime.ipu import IpuRuntime

    return IpuRuntime(config, place_ipu(config), num_cores=1)


def single_runtime(config: Config) -> SingleRuntime:
    return SingleRuntime(config, place_single(config), num_cores=1)


def outcome(runtime: Any, config: Config, num_steps: int, first_step: int = 0) -> Outcome:
    """Figures of each step, the weights, and logits of some images. Closes the runtime."""
    figures: List[Tuple[float, float]] = []
    for step in range(first_step, first_step + num_steps):
        step_result = runtime.train_step(
            host_batch(config, runtime.share, step), rate_of(config, step), step * config.device_iterations
        )
        figures.append((step_result.loss, step_result.accuracy))
    found = {"figures": figures, "weights": weights_of(runtime), "logits": logits_of(runtime, config)}
    runtime.close()
    return found


def rate_of(config: Config, step: int) -> float:
    """A rate that changes with every step."""
    assert config.learning_rate is not None
    return config.learning_rate / (1 + step)


def weights_of(runtime: Any) -> Dict[str, Tensor]:
    return {name: value.clone().detach() for part in runtime.weights().values() for name, value in part.items()}


def logits_of(runtime: Any, config: Config) -> Tensor:
    shape = (runtime.eval_batch_size, config.num_channels, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return runtime.predict(images)[: config.micro_batch_size]
