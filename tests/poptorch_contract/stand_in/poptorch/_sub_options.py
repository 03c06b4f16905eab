"""The sub-objects of Options. Their setters return the sub-object itself, not the Options."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

import os
from typing import Any, Dict

import torch

from poptorch._api import API, CLASSES, enforced
from poptorch._errors import Error
from poptorch._options_dict import Frozen, OptionsDict
from poptorch.enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType  # type: ignore[attr-defined]

_KEYS = API["popart_keys"]
_TABLES = (
    (bool, "bool"),
    (int, "uint64"),
    (float, "double"),
    (str, "string"),
    (list, "container"),
    (dict, "container"),
)
_TABLE_OF = {**dict(_TABLES), tuple: "container", set: "container"}


@enforced("poptorch.options._PopartOptions")
class _PopartOptions(Frozen):
    """Settings of PopART by key. The Python type of the value picks the table in which the key is looked up."""

    _path = "_Popart."

    def __init__(self) -> None:
        self._options: Dict[str, Any] = {"instrumentWithHardwareCycleCounter": False, "rearrangeAnchorsOnHost": False}

    @property
    def options(self) -> Dict[str, Any]:
        return self._options

    def set(self, key: str, value: Any) -> _PopartOptions:
        # PopTorch looks the key up when it compiles. Here at once, so that the traceback shows the culprit.
        table = "uint64" if isinstance(value, int) and type(value) is not bool else _TABLE_OF.get(type(value))
        assert table is not None, f"Unexpected type {type(value)} for option {key}"
        known = set(_KEYS[table]) | (set(_KEYS["enum_as_uint64"]) if table == "uint64" else set())
        if key not in known:
            raise Error(f"Unknown {table} option {key}")
        self._options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        self._options.update(patterns=patterns, patterns_level=level)
        return self

    def __repr__(self) -> str:
        return f"_PopartOptions({self._options})"


class _Child(OptionsDict):
    def __init__(self, popart_options: Any = None, **values: Any) -> None:
        super().__init__(**values)
        self._popart = popart_options


@enforced("poptorch.options._TrainingOptions", untyped=("accumulationAndReplicationReductionType",))
class _TrainingOptions(_Child):
    _path = "Training."

    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__(
            popart_options,
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: Any) -> _TrainingOptions:
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(
                "accumulationAndReplicationReductionType must be set to poptorch.ReductionType.Mean or "
                "poptorch.ReductionType.Sum"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(self, mean_reduction_strategy: Any) -> _TrainingOptions:
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        self._popart.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        # Replaces the whole key, and with it what setPartialsType wrote.
        self._popart.set("convolutionOptions", {"enableConvDithering": "true" if enabled else "false"})
        return self


@enforced("poptorch.options._PrecisionOptions", untyped=("setPartialsType",))
class _PrecisionOptions(_Child):
    _path = "Precision."

    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__(popart_options)

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> _PrecisionOptions:
        raise DeprecationWarning("halfFloatCasting does nothing any more but log a warning")

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        raise DeprecationWarning("runningStatisticsAlwaysFloat does nothing any more but log a warning")

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        self._popart.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        self._popart.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise ValueError("setPartialsType: expected torch.float32, torch.float, torch.float16 or torch.half")
        # Replaces the whole key, and with it what setConvolutionDithering wrote.
        self._popart.set("convolutionOptions", {"partialsType": names[dtype]})
        self._popart.set("partialsTypeMatMuls", names[dtype])
        return self


@enforced("poptorch.TensorLocationSettings")
class TensorLocationSettings(OptionsDict):
    """Where tensors of a kind live, and whether replicas share them out."""

    _path = "TensorLocationSettings."

    def __init__(self) -> None:
        super().__init__()

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        return self._put(minElementsForOffChip=min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        return self._put(minElementsForReplicatedTensorSharding=min_elements)

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:
        return self._put(onChip=use)

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        return self._put(useReplicatedTensorSharding=use)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        return self._put(useIOTilesToLoad=use)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        return self._put(useIOTilesToStore=use)

    def _put(self, **kwargs: Any) -> TensorLocationSettings:
        self.createOrSet(**kwargs)
        return self


CLASSES["TensorLocationSettings"] = TensorLocationSettings


@enforced("poptorch.options._TensorLocationOptions")
class _TensorLocationOptions(_Child):
    _path = "TensorLocations."

    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        even = num_tiles % 2 == 0
        assert even and 32 <= num_tiles <= 192, "numIOTiles must be an even number between 32 and 192."
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._put(location_activation=location.toDict())

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._put(location_weight=location.toDict())

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._put(location_optimizer=location.toDict())

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._put(location_accumulator=location.toDict())

    def _put(self, **kwargs: Any) -> _TensorLocationOptions:
        self.createOrSet(**kwargs)
        return self


@enforced("poptorch.options._DistributedOptions")
class _DistributedOptions(_Child):
    _path = "Distributed."

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self._from_environment("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def _from_environment(self, size: str, rank: str) -> None:
        self._values["num_distributed_processes"] = int(os.environ.get(size, "1"))
        self._values["distributed_process_id"] = int(os.environ.get(rank, "0"))

    def disable(self) -> _DistributedOptions:
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        self._from_environment(var_num_processes, var_process_id)
        return self

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        assert 0 <= process_id < num_processes, f"process {process_id} of {num_processes}"
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        return self._values["distributed_process_id"]

    @property
    def numProcesses(self) -> int:
        return self._values["num_distributed_processes"]


@enforced("poptorch.options._JitOptions")
class _JitOptions(_Child):
    _path = "Jit."

    def traceModel(self, trace_model: bool) -> _JitOptions:
        if trace_model:
            raise ValueError("Tracing with torch.jit.trace is no longer supported")
        return self
