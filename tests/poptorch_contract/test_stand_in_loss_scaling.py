"""Automatic loss scaling: the golden traces of PopTorch's own tests, and the rule behind them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.poptorch_contract.models import Classifier, batch, options_for

TRACES = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())["als"]["golden_traces"]


def scaled_executor(poptorch, period=1, accumulation=1, loss_scaling=10.0, iterations=1, **settings):
    model = Classifier().half()
    options = options_for(poptorch, iterations, accumulation)
    options.Training.setAutomaticLossScaling(True)
    for name, value in {"updatePeriod": period, **settings}.items():
        options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    optimizer = poptorch.optim.SGD(
        model.parameters(), lr=0.0, loss_scaling=loss_scaling, accum_type=torch.float16, use_combined_accum=False
    )
    return poptorch.trainingModel(model, options, optimizer), optimizer


def run(executor, rows, calls):
    x, y = batch(rows)
    for _ in range(calls):
        executor(x.half(), y)


@pytest.mark.parametrize("name", TRACES)
def test_scales_follow_the_golden_trace(poptorch, name):
    period = 2 if "period 2" in name else 1
    accumulation = 3 if "GA 3" in name else 1
    executor, _ = scaled_executor(poptorch, period, accumulation)
    run(executor, accumulation, len(TRACES[name]) // accumulation)
    assert poptorch.stand_in.report(executor).loss_scales == TRACES[name]


def test_large_gradients_halve_the_scale_and_never_stop_the_update(poptorch):
    executor, optimizer = scaled_executor(poptorch, loss_scaling=2.0**17)
    run(executor, 2, 3)
    report = poptorch.stand_in.report(executor)
    assert report.loss_scales == [2.0**17, 2.0**16, 2.0**15]
    assert report.weight_updates == 3
    assert optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"] == 0.125


def test_the_threshold_is_a_share_of_all(poptorch):
    # With a share of 1 any number of large gradients is few enough.
    executor, _ = scaled_executor(poptorch, loss_scaling=2.0**17, thresholdUpperCountProportion=1.0)
    run(executor, 2, 2)
    assert poptorch.stand_in.report(executor).loss_scales == [2.0**17, 2.0**18]


def test_a_new_base_keeps_the_factor(poptorch):
    executor, optimizer = scaled_executor(poptorch)
    run(executor, 1, 2)
    optimizer.loss_scaling = 1.0
    executor.setOptimizer(optimizer)
    run(executor, 1, 1)
    assert poptorch.stand_in.report(executor).loss_scales == [10, 20, 4]


def test_the_factor_is_saved_with_the_state(poptorch):
    executor, optimizer = scaled_executor(poptorch)
    run(executor, 1, 3)
    state = optimizer.state_dict()
    poptorch.stand_in.reset()
    again, other = scaled_executor(poptorch)
    other.load_state_dict(state)
    run(again, 1, 1)
    assert poptorch.stand_in.report(again).loss_scales == [80]


def test_the_scale_can_be_anchored(poptorch):
    model = Classifier().half()
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("scale", "finalLossScale", poptorch.OutputMode.Final)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=4.0))
    with pytest.raises(poptorch.Error):
        executor.getAnchoredTensor("scale")
    run(executor, 1, 2)
    assert executor.getAnchoredTensor("scale") == 8


def test_the_update_period_goes_on_after_a_restored_state(poptorch):
    executor, optimizer = scaled_executor(poptorch, period=2)
    run(executor, 1, 1)
    state = optimizer.state_dict()
    poptorch.stand_in.reset()
    again, other = scaled_executor(poptorch, period=2)
    other.load_state_dict(state)
    run(again, 1, 3)
    assert poptorch.stand_in.report(again).loss_scales == [20, 20, 40]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(poptorch, share):
    executor, _ = scaled_executor(poptorch, thresholdUpperCountProportion=share)
    with pytest.raises(poptorch.Error, match="thresholdUpperCountProportion"):
        run(executor, 1, 1)
