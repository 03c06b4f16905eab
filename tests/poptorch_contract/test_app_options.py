"""What `ipu_options.py` sets: every call that the public app makes, for training and for evaluation."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from ipu_options import evaluation_options, training_options
from tests.small import small_config

APP: Dict[str, Any] = {  # as the app's fine-tuning config
    "runtime": "ipu",
    "layers_per_ipu": [1, 1, 1, 1],
    "gradient_accumulation": 8,
    "replication_factor": 4,
    "device_iterations": 3,
    "matmul_proportion": [0.3, 0.25, 0.3, 0.2],
    "precision": "16.16",
    "accum_type": "fp16",
    "optimizer_state_offchip": False,
    "enable_rts": True,
    "prefetch_depth": 2,
}
ALS = {"auto_loss_scaling": True, "als_period": 2, "als_threshold": 1e-6, "als_bin_edge": 0.25}
POPART_OF_TRAINING = [
    ("disableGradAccumulationTensorStreams", True),
    ("accumulateOuterFragmentSettings.schedule", 3),
    ("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"]),
    ("scheduleNonWeightUpdateGradientConsumersEarly", True),
]
POPART = [("defaultPrefetchBufferingDepth", 2), ("subgraphCopyingStrategy", 1)]
ENGINE = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}


def calls(poptorch: Any, tmp_path: Any, build: Any, **keys: Any) -> List[Any]:
    build(small_config(tmp_path, **{**APP, **keys}))
    return [tuple(call)[:2] for call in poptorch.stand_in.option_calls()]


def popart(found: List[Any]) -> Dict[str, Any]:
    return {args[0]: args[1] for name, args in found if name == "_Popart.set"}


def test_training_sets_what_the_app_sets(poptorch: Any, tmp_path: Any) -> None:
    found = calls(poptorch, tmp_path, training_options)
    for expected in [
        ("autoRoundNumIPUs", (True,)),
        ("deviceIterations", (3,)),
        ("replicationFactor", (4,)),
        ("Training.gradientAccumulation", (8,)),
        ("Training.accumulationAndReplicationReductionType", (poptorch.ReductionType.Mean,)),
        ("outputMode", (poptorch.OutputMode.All,)),
        ("randomSeed", (42,)),
        ("setAvailableMemoryProportion", ({"IPU0": 0.3, "IPU1": 0.25, "IPU2": 0.3, "IPU3": 0.2},)),
        ("Precision.enableStochasticRounding", (True,)),
    ]:
        assert expected in found
    assert ("Training.setAutomaticLossScaling", (True,)) not in found
    assert popart(found) == {**dict(POPART_OF_TRAINING), **dict(POPART), "engineOptions": ENGINE}
    (strategy,) = [args[0] for name, args in found if name == "setExecutionStrategy"]
    assert type(strategy) is poptorch.PipelinedExecution


def test_evaluation_neither_accumulates_nor_rounds_at_random(poptorch: Any, tmp_path: Any) -> None:
    found = calls(poptorch, tmp_path, evaluation_options, auto_loss_scaling=True)
    names = [name for name, _ in found]
    assert ("Precision.enableStochasticRounding", (False,)) in found
    assert ("deviceIterations", (4,)) in found  # one for each stage, though training has three
    assert ("outputMode", (poptorch.OutputMode.All,)) in found
    assert ("replicationFactor", (4,)) in found
    assert not any(name.startswith(("Training.", "TensorLocations.")) for name in names)
    assert popart(found) == {**dict(POPART), "engineOptions": ENGINE}


def test_more_device_iterations_than_stages_are_kept_in_evaluation(poptorch: Any, tmp_path: Any) -> None:
    assert ("deviceIterations", (9,)) in calls(poptorch, tmp_path, evaluation_options, device_iterations=9)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"reduction_type": "sum"}, ("Training.accumulationAndReplicationReductionType", "Sum")),
        ({"precision": "32.32"}, ("Precision.enableStochasticRounding", False)),
        ({"stochastic_rounding": False}, ("Precision.enableStochasticRounding", False)),
        ({"synthetic_data": True}, ("enableSyntheticData", True)),
        ({"executable_cache_dir": "cache"}, ("enableExecutableCaching", "cache")),
        ({"ipu_target": "model"}, ("useIpuModel", True)),
        ({"ipu_target": "offline", "ipu_version": 21}, ("useOfflineIpuTarget", 21)),
        ({"matmul_proportion": [0.4]}, ("setAvailableMemoryProportion", {f"IPU{ipu}": 0.4 for ipu in range(4)})),
        ({"layers_per_ipu": [4], "matmul_proportion": [0.4]}, ("setAvailableMemoryProportion", {"IPU0": 0.4})),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value[0],
)
def test_a_key_sets_its_option(poptorch: Any, tmp_path: Any, keys: Dict[str, Any], expected: Any) -> None:
    found = [
        (name, getattr(args[0], "name", args[0]))
        for name, args in calls(poptorch, tmp_path, training_options, **keys)
        if args
    ]
    assert expected in found


@pytest.mark.parametrize(
    ("keys", "absent"),
    [
        ({"half_partials": False}, "Precision.setPartialsType"),
        ({"precision": "32.32"}, "Precision.setPartialsType"),
        ({"matmul_proportion": None}, "setAvailableMemoryProportion"),
        ({}, "enableSyntheticData"),
        ({}, "enableExecutableCaching"),
        ({}, "useIpuModel"),
        ({}, "useOfflineIpuTarget"),
    ],
    ids=str,
)
def test_what_is_not_asked_for_is_not_set(poptorch: Any, tmp_path: Any, keys: Dict[str, Any], absent: str) -> None:
    assert absent not in [name for name, _ in calls(poptorch, tmp_path, training_options, **keys)]


def test_half_partials_are_set(poptorch: Any, tmp_path: Any) -> None:
    import torch

    assert ("Precision.setPartialsType", (torch.half,)) in calls(poptorch, tmp_path, training_options)


def test_one_prefetch_buffer_is_poparts_own_choice(poptorch: Any, tmp_path: Any) -> None:
    assert "defaultPrefetchBufferingDepth" not in popart(calls(poptorch, tmp_path, training_options, prefetch_depth=1))


def test_settings_of_automatic_loss_scaling_have_the_types_of_their_tables(poptorch: Any, tmp_path: Any) -> None:
    found = calls(poptorch, tmp_path, training_options, **ALS)
    assert ("Training.setAutomaticLossScaling", (True,)) in found
    settings = popart(found)
    for key, value in (("updatePeriod", 2), ("thresholdUpperCountProportion", 1e-6), ("binEdgeLocation", 0.25)):
        found_value = settings[f"automaticLossScalingSettings.{key}"]
        assert (found_value, type(found_value)) == (value, type(value))
    assert ("anchorTensor", ("loss_scale", "finalLossScale", poptorch.OutputMode.Final)) in found


@pytest.mark.parametrize("offchip", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_optimiser_state_is_where_the_config_says(poptorch: Any, tmp_path: Any, offchip: bool, sharded: bool) -> None:
    options = training_options(
        small_config(tmp_path, **{**APP, "optimizer_state_offchip": offchip, "enable_rts": sharded})
    )
    location = options.toDict()["location_optimizer"]
    assert location["onChip"] is not offchip
    assert location["useReplicatedTensorSharding"] is sharded


def test_profiles_go_to_their_folder(poptorch: Any, tmp_path: Any) -> None:
    engine = popart(calls(poptorch, tmp_path, training_options, profile_dir="reports"))["engineOptions"]
    assert engine == {
        **ENGINE,
        "debug.allowOutOfMemory": "true",
        "autoReport.directory": "reports",
        "profiler.format": "v3",
        "autoReport.all": "true",
    }


def test_every_options_object_is_fresh(poptorch: Any, tmp_path: Any) -> None:
    """Executors freeze what they are given: a second use would fail at the first setter."""
    config = small_config(tmp_path, **APP)
    first, second = training_options(config), training_options(config)
    assert first is not second
    poptorch.trainingModel(_Model(), options=first, optimizer=None)
    second.deviceIterations(5)
    with pytest.raises(AttributeError, match="frozen"):
        first.deviceIterations(5)


def _Model() -> Any:  # noqa: N802
    import torch

    return torch.nn.Linear(2, 2)
