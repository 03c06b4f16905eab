"""What a compiled model has to fit: pipeline, number of IPUs, memory, buffers. Checked when it is compiled."""

from __future__ import annotations

import os
from typing import Any

from poptorch._capture import Program
from poptorch._errors import Error
from poptorch.enums import MeanReductionStrategy  # type: ignore[attr-defined]

_MOST_IPUS = 64


def num_stages(program: Program, training: bool) -> int:
    forward = program.walk.num_forward_stages
    return 2 * forward - 1 if training else forward


def check_limits(program: Program, options: Any, training: bool) -> int:
    """The number of IPUs that are reserved. poptorch.Error where the model does not fit its options."""
    if options._execution_strategy.is_pipelined:
        _check_pipeline(num_stages(program, training), options, training)
    _check_memory(program, options)
    _check_settings(options)
    if options.replication_factor > 1 and options.broadcast_buffers and program.updated_buffers:
        raise Error(
            f"The buffers {sorted(program.updated_buffers)} are updated in the forward pass with a replication factor "
            "greater than 1: call poptorch.Options().broadcastBuffers(False), and each replica keeps its own."
        )
    if hasattr(options, "_check_ipus"):
        options._check_ipus(program.walk.num_ipus)
    return _reserved_ipus(program.walk.num_ipus * options.replication_factor, options)


def _check_pipeline(stages: int, options: Any, training: bool) -> None:
    if training and options.Training.gradient_accumulation < stages:
        raise Error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with W weights stages "
            "has 2W - 1 stages when it is trained."
        )
    if not training and options.device_iterations < stages:
        raise Error(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({stages}) when using poptorch.PipelinedExecution."
        )


def _check_memory(program: Program, options: Any) -> None:
    used = {place.ipu for place in program.walk.places}
    unknown = sorted(set(options.available_memory_proportion) - used)
    if unknown:
        raise Error(f"setAvailableMemoryProportion: IPU{unknown[0]} is none of the IPUs {sorted(used)} of the model")


def _check_settings(options: Any) -> None:
    popart = options._Popart.options
    if options.Training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.PostAndLoss:
        raise Error("MeanReductionStrategy.PostAndLoss is unknown to PopART")
    if popart.get("enableEngineCaching") and uses_ipu_model(options):
        raise Error("the executable cache does not work with the IPU Model")
    if options.exists("ipu_version") and uses_ipu_model(options):
        raise Error("useOfflineIpuTarget does not work with the IPU Model")
    share = popart.get("automaticLossScalingSettings.thresholdUpperCountProportion", 0.0)
    if not 0.0 <= share <= 1.0:
        raise Error(f"thresholdUpperCountProportion is {share}, not in [0, 1]")


def uses_ipu_model(options: Any) -> bool:
    if options.exists("use_model"):
        return options.use_model
    return os.environ.get("POPTORCH_IPU_MODEL", "0") not in ("0", "")


def _reserved_ipus(needed: int, options: Any) -> int:
    minimum = 1 << (needed - 1).bit_length()
    if minimum != needed and not options.auto_round_num_ipus and not uses_ipu_model(options):
        raise Error(
            f"The model specifies the use of {needed} IPUs, however PopTorch must reserve a minimum of {minimum} in "
            "order to allow the model to run. Please reconfigure your model, or use "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )
    reserved = minimum if options.auto_round_num_ipus else needed
    if reserved > _MOST_IPUS:
        raise Error(f"{reserved} IPUs are more than the {_MOST_IPUS} that one process can use")
    return reserved
