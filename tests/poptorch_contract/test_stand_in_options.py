"""Options of the stand-in are as strict as PopTorch's."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FROZEN = "Can't modify frozen Options"


def test_setters_of_the_top_level_return_the_options_and_others_the_sub_object(poptorch):
    options = poptorch.Options()
    assert options.deviceIterations(2) is options
    assert options.Training.gradientAccumulation(2) is options.Training
    assert options.Precision.enableStochasticRounding(True) is options.Precision
    with pytest.raises(AttributeError):
        options.Training.gradientAccumulation(8).deviceIterations(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deviceIterations", np.int64(2)),
        ("deviceIterations", True),
        ("deviceIterations", 2.0),
        ("replicationFactor", "2"),
        ("autoRoundNumIPUs", 1),
        ("outputMode", "All"),
        ("outputMode", 2),
        ("connectionType", 2),
        ("syncPattern", "Full"),
        ("enableExecutableCaching", None),
        ("setAvailableMemoryProportion", {"IPU0": 1}),
        ("setAvailableMemoryProportion", {"IPU0": 0.0}),
        ("setAvailableMemoryProportion", {"IPU0": 1.5}),
        ("setAvailableMemoryProportion", {"0": 0.5}),
        ("Training.gradientAccumulation", np.int32(4)),
        ("Training.setAutomaticLossScaling", 1),
        ("Training.setMeanAccumulationAndReplicationReductionStrategy", 1),
        ("TensorLocations.numIOTiles", 33),
        ("TensorLocations.numIOTiles", 30),
        ("TensorLocations.setOptimizerLocation", True),
    ],
)
def test_a_value_of_another_type_is_refused(poptorch, name, value):
    target = poptorch.Options()
    *owners, method = name.split(".")
    for owner in owners:
        target = getattr(target, owner)
    with pytest.raises(AssertionError):
        getattr(target, method)(value)


def test_every_period_of_outputs_has_to_be_positive(poptorch):
    for period in (None, 0):
        with pytest.raises(AssertionError):
            poptorch.Options().outputMode(poptorch.OutputMode.EveryN, period)


def test_unknown_arguments_do_not_bind(poptorch):
    with pytest.raises(TypeError, match="deviceIterations"):
        poptorch.Options().deviceIterations(iterations=2)
    with pytest.raises(TypeError):
        poptorch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, first_order_momentum_accum_type=torch.float16)
    with pytest.raises(TypeError):
        poptorch.BeginBlock(torch.nn.Identity(), "a", 0, 1)


def test_every_listed_name_is_there_with_its_signature(poptorch):
    symbols = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())["symbols"]
    missing = [symbol for symbol in symbols if not _find(poptorch, symbol)]
    # Bases that nobody names.
    assert missing == ["poptorch.options._IPhasedExecution"]
    for symbol, facts in symbols.items():
        owner = _find(poptorch, symbol)
        assert not [name for name in facts.get("methods", {}) if owner and not hasattr(owner, name)], symbol


def _find(poptorch, symbol):
    module, _, name = symbol.rpartition(".")
    owner = {
        "poptorch": poptorch,
        "poptorch.optim": poptorch.optim,
        "poptorch.options": sys.modules["poptorch.options"],
    }
    return getattr(owner[module], name, None)


def test_names_that_went_or_never_were_do_not_exist(poptorch):
    gone = (
        "AnchorMode",
        "autocast",
        "experimental",
        "Compiler",
        "setOverlapForInput",
        "set_block",
        "ConvolutionDithering",
    )
    assert not [name for name in (*gone, "MultiAnchor", "DistributedDataParallel") if hasattr(poptorch, name)]
    options = poptorch.Options()
    assert not [name for name in ("anchorMode", "gradientAccumulation", "random_seed") if hasattr(options, name)]
    assert not [name for name in ("autocastEnabled", "autocastPolicy") if hasattr(options.Precision, name)]
    assert [member.name for member in poptorch.AutoStage] == ["SameAsIpu", "AutoIncrement"]
    with pytest.raises(AttributeError):
        options.deviceIteration = 3


def test_a_random_seed_exists_once_set_and_seeds_torch(poptorch):
    options = poptorch.Options()
    assert not options.exists("random_seed")
    options.randomSeed(7)
    drawn = torch.rand(3)
    assert options.random_seed == 7
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_partials_type_and_dithering_replace_each_other(poptorch):
    options = poptorch.Options()
    options.Precision.setPartialsType(torch.half)
    options.Training.setConvolutionDithering(True)
    assert options._Popart.options["convolutionOptions"] == {"enableConvDithering": "true"}
    options.Precision.setPartialsType(torch.float32)
    assert options._Popart.options["convolutionOptions"] == {"partialsType": "float"}
    options._Popart.setEngineOptions({"a": "b"})
    assert options._Popart.set("engineOptions", {"c": "d"}).options["engineOptions"] == {"c": "d"}


def test_the_type_of_a_value_picks_the_table_of_its_key(poptorch):
    settings = poptorch.Options()._Popart
    settings.set("automaticLossScalingSettings.binEdgeLocation", 0.25)
    settings.set("automaticLossScalingSettings.updatePeriod", 2)
    settings.set("autoRecomputation", 3)
    settings.set("enableOutlining", False)
    for key, value in [
        ("automaticLossScalingSettings.binEdgeLocation", 1),
        ("enableOutlining", 1),
        ("updatePeriod", 2),
        ("automaticLossScalingSettings.toTrackTensors", ["a"]),
        ("outlineThreshold", "1.0"),
    ]:
        with pytest.raises(poptorch.Error, match=r"Unknown \w+ option"):
            settings.set(key, value)


def test_frozen_options_refuse_and_their_copies_do_not(poptorch):
    options = poptorch.Options()
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2), options)
    for change in (
        lambda some: some.deviceIterations(2),
        lambda some: some.Training.gradientAccumulation(2),
        lambda some: some._Popart.set("enableOutlining", False),
        lambda some: some.Distributed.configureProcessId(0, 2),
        lambda some: some.TensorLocations.numIOTiles(32),
    ):
        for frozen in (options, executor.options):
            with pytest.raises(AttributeError, match=FROZEN):
                change(frozen)
        for free in (options.clone(), copy.deepcopy(executor.options)):
            change(free)
    assert executor.options is not options


def test_all_options_are_in_one_dictionary(poptorch):
    options = poptorch.Options().deviceIterations(3)
    options.Training.gradientAccumulation(5)
    options.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useReplicatedTensorSharding(True))
    found = options.toDict()
    assert (found["device_iterations"], found["gradient_accumulation"]) == (3, 5)
    assert found["location_optimizer"] == {"useReplicatedTensorSharding": True}


def test_calls_of_setters_are_logged_in_order(poptorch):
    options = poptorch.Options().deviceIterations(3)
    options.Training.gradientAccumulation(gradient_accumulation=5)
    options.Precision.setPartialsType(torch.half)  # what it sets in turn is nobody's call
    calls = [tuple(call) for call in poptorch.stand_in.option_calls()]
    assert calls == [
        ("Options", (), {}),
        ("deviceIterations", (3,), {}),
        ("Training.gradientAccumulation", (), {"gradient_accumulation": 5}),
        ("Precision.setPartialsType", (torch.half,), {}),
    ]


def test_deprecated_setters_are_refused(poptorch):
    with pytest.raises(DeprecationWarning):
        poptorch.Options().Precision.runningStatisticsAlwaysFloat(True)


def test_processes_come_from_the_environment(poptorch, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = poptorch.Options().Distributed
    assert (distributed.processId, distributed.numProcesses) == (3, 4)
    assert distributed.disable().numProcesses == 1
