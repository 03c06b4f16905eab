"""Two and four stages that share one GPU give the numbers of the single device; on CPUs the same body runs without sharing."""

from __future__ import annotations

from typing import Any, Dict

import pytest

import machine
from config import Config
from placement import place_pipeline
from tests.gpu.devices import assert_close, figures, on_each_device, plain_runtime, train, weights_of
from tests.processes import run_processes
from tests.small import small_config

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]

PLANS = [
    ([2, 2], 2, {}),
    ([1, 1, 1, 1], 4, {"max_grad_norm": 0.01, "mixup": True, "alpha": 0.5}),
    ([2, 2], 4, {"replication_factor": 2, "enable_rts": True, "ema_decay": 0.9}),
]


@pytest.mark.parametrize(("layers_per_ipu", "processes", "keys"), PLANS, ids=["2 stages", "4 stages", "2 x 2"])
@on_each_device
def test_stages_that_share_a_device_give_the_numbers_of_one(
    tmp_path: Any, device: str, layers_per_ipu: Any, processes: int, keys: Dict[str, Any]
) -> None:
    config = small_config(
        tmp_path, device=device, layers_per_ipu=layers_per_ipu, runtime="pipeline", share_gpus=True, **keys
    )
    outcomes = run_processes(processes, run_stage, config)
    expected = plain_runtime(tmp_path, device, layers_per_ipu=layers_per_ipu, **keys)
    wanted = figures(train(expected, 2))
    for outcome in outcomes:
        assert outcome["figures"] == pytest.approx(wanted, rel=1e-6)  # sums in another order
    weights = {name: value for outcome in outcomes for name, value in outcome["weights"].items()}
    assert_close(weights, weights_of(expected), 1e-6)


def run_stage(rank: int, config: Config) -> Dict[str, Any]:
    from runtime.pipeline import PipelineRuntime

    runtime = PipelineRuntime(config, place_pipeline(config, machine.world_size(), 0, 1), rank, rank)
    assert runtime.device.type == config.device
    assert any("share" in note for note in runtime.notes) == (config.device == "cuda")
    results = figures(train(runtime, 2))  # type: ignore[arg-type]
    weights = {name: value.cpu() for part in runtime.weights().values() for name, value in part.items()}
    images = runtime.predict(_evaluation_images(runtime))
    assert images is None or images.isfinite().all()
    runtime.close()
    return {"figures": results, "weights": weights}


def _evaluation_images(runtime: Any) -> Any:
    from tests.small import host_batch

    images = host_batch(runtime.config, runtime.share).images
    return None if images is None else images[:2].repeat(runtime.eval_batch_size // 2, 1, 1, 1)
