"""Config -> poptorch.Options, for training and for evaluation; and what PopTorch and poprun say of where a command runs.

Written against PopTorch 3.4. Top-level setters return the options, those of `Training`, `Precision` and so on return these:
nothing is chained here. An executor freezes the options that it is given, so each gets its own.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional

from errors import UserError
from ipu_plan import eval_device_iterations, num_stages

if TYPE_CHECKING:
    from config import Config

LOSS_SCALE = "loss_scale"  # our short name of the anchored tensor
# Members of PopART's enumerations, which PopTorch takes as numbers.
OVERLAP_MEMORY_OPTIMIZED, JUST_IN_TIME = 3, 1


@dataclass(frozen=True)
class Poprun:
    """This process among the instances that poprun has started."""

    instance: int
    num_instances: int
    local_replicas: int
    total_replicas: int
    first_replica: int
    ipus_per_replica: int


def is_installed() -> bool:
    """Whether this Python has PopTorch."""
    return importlib.util.find_spec("poptorch") is not None


def hardware_is_there(num_ipus: int) -> bool:
    """Whether PopTorch is installed and finds so many IPUs."""
    if not is_installed():
        return False
    import poptorch

    return bool(poptorch.ipuHardwareIsAvailable(num_ipus))


@functools.lru_cache(maxsize=None)
def poprun() -> Optional[Poprun]:
    """How poprun has started this process; None where it has not. Connects to the other instances, once."""
    if importlib.util.find_spec("popdist") is None:
        return None
    import popdist

    if not popdist.isPopdistEnvSet():
        return None
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(
            f"poprun started this process, but horovod is missing ({error}): instances average their figures through it.\n"
            "       Install it beside PopTorch (requirements-ipu.txt says which), or start without poprun."
        ) from error
    hvd.init()
    popdist.init()
    instance, local = popdist.getInstanceIndex(), popdist.getNumLocalReplicas()
    return Poprun(
        instance=instance,
        num_instances=popdist.getNumInstances(),
        local_replicas=local,
        total_replicas=popdist.getNumTotalReplicas(),
        first_replica=instance * local,
        ipus_per_replica=popdist.getNumIpusPerReplica(),
    )


def training_options(config: Config) -> Any:
    """Options for `poptorch.trainingModel`. The config has passed `ipu_plan.check_plan`."""
    import poptorch

    options = _options(config, config.device_iterations)
    training = options.Training
    training.gradientAccumulation(config.gradient_accumulation)
    is_mean = config.reduction_type == "mean"
    kind = poptorch.ReductionType.Mean if is_mean else poptorch.ReductionType.Sum
    training.accumulationAndReplicationReductionType(kind)
    if config.auto_loss_scaling:
        _adapt_loss_scale(options, config)
    options.Precision.enableStochasticRounding(config.stochastic_rounding and config.stores_16_bits)
    where = poptorch.TensorLocationSettings()
    where.useOnChipStorage(not config.optimizer_state_offchip)
    where.useReplicatedTensorSharding(config.enable_rts)
    options.TensorLocations.setOptimizerLocation(where)
    popart = options._Popart
    popart.set("disableGradAccumulationTensorStreams", True)
    popart.set("accumulateOuterFragmentSettings.schedule", OVERLAP_MEMORY_OPTIMIZED)
    popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
    popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
    return options


def evaluation_options(config: Config) -> Any:
    """Options for `poptorch.inferenceModel`: no accumulation, rounding to nearest, a device iteration for each stage or more."""
    options = _options(config, eval_device_iterations(config))
    options.Precision.enableStochasticRounding(False)
    return options


def _options(config: Config, device_iterations: int) -> Any:
    """What training and evaluation have in common."""
    import poptorch

    options = _empty_options(config)
    options.deviceIterations(device_iterations)
    # Every micro-batch's loss and logits: the default in training is the last micro-batch's alone.
    options.outputMode(poptorch.OutputMode.All)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.SameAsIpu))
    options.autoRoundNumIPUs(True)
    options.randomSeed(config.random_seed)
    if config.matmul_proportion is not None:
        options.setAvailableMemoryProportion(_memory_proportions(config))
    if config.half_partials and not config.precision.startswith("32"):
        import torch

        options.Precision.setPartialsType(torch.half)
    if config.synthetic_data:
        options.enableSyntheticData(True)
    if config.executable_cache_dir:
        options.enableExecutableCaching(config.executable_cache_dir)
    _choose_target(options, config)
    popart = options._Popart
    if config.prefetch_depth > 1:
        popart.set("defaultPrefetchBufferingDepth", config.prefetch_depth)
    popart.set("subgraphCopyingStrategy", JUST_IN_TIME)
    popart.set("engineOptions", _engine_options(config))
    return options


def _empty_options(config: Config) -> Any:
    """Under poprun popdist's own, which know the replicas of this instance and forbid to set them."""
    if poprun() is not None:
        import popdist.poptorch

        return popdist.poptorch.Options(ipus_per_replica=num_stages(config))
    import poptorch

    options = poptorch.Options()
    options.replicationFactor(config.replication_factor)
    return options


def _choose_target(options: Any, config: Config) -> None:
    if config.ipu_target == "model":
        options.useIpuModel(True)
    elif config.ipu_target == "offline":
        options.useOfflineIpuTarget(config.ipu_version)


def _memory_proportions(config: Config) -> Dict[str, float]:
    """One for each IPU of a replica; a single value is all IPUs'."""
    values, stages = config.matmul_proportion or (), num_stages(config)
    if len(values) == 1:
        values = values * stages
    return {f"IPU{ipu}": float(value) for ipu, value in enumerate(values)}


def _adapt_loss_scale(options: Any, config: Config) -> None:
    import poptorch

    options.Training.setAutomaticLossScaling(True)
    settings = {
        "updatePeriod": config.als_period,
        "thresholdUpperCountProportion": float(config.als_threshold),
        "binEdgeLocation": float(config.als_bin_edge),
    }
    for name, value in settings.items():  # the type of the value chooses PopART's table: int and float are not alike
        options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    options.anchorTensor(LOSS_SCALE, "finalLossScale", poptorch.OutputMode.Final)


def _engine_options(config: Config) -> Dict[str, str]:
    engine = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}
    if config.profile_dir:
        engine["debug.allowOutOfMemory"] = "true"
        engine["autoReport.directory"] = config.profile_dir
        engine["profiler.format"] = "v3"
        engine["autoReport.all"] = "true"
    return engine
