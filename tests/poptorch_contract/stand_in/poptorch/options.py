"""Options: what PopTorch is told before it compiles. Setters of the top level return the Options."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Optional

import torch

from poptorch._api import enforced
from poptorch._options_dict import OptionsDict
from poptorch._strategies import AnyStrategy, PipelinedExecution
from poptorch._sub_options import (
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from poptorch.enums import CommGroupType, ConnectionType, OutputMode, SyncPattern  # type: ignore[attr-defined]


@enforced("poptorch.Options")
class Options(OptionsDict):
    """See the constructor for what exists from the start: `random_seed`, `ipu_id` and others appear when set."""

    def __init__(self) -> None:
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=OutputMode.Default.value,
            output_return_period=1,
            connection_type=ConnectionType.Always.value,
            sync_pattern=SyncPattern.Full.value,
            available_memory_proportion={},
        )
        self._popart = _PopartOptions()
        self._training = _TrainingOptions(self._popart)
        self._precision = _PrecisionOptions(self._popart)
        self._locations = _TensorLocationOptions()
        self._distributed = _DistributedOptions()
        self._jit = _JitOptions()
        self._execution_strategy: Any = PipelinedExecution()
        self._relax_optimizer_checks = False
        if "POPTORCH_CACHE_DIR" in os.environ:
            self._popart._options.update(enableEngineCaching=True, cachePath=os.environ["POPTORCH_CACHE_DIR"])

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        return self._locations

    @property
    def Distributed(self) -> _DistributedOptions:
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        self._relax_optimizer_checks = relax
        return self

    def disableModuleNamescope(self) -> Options:
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        return self._put(auto_round_num_ipus=auto_round_num_ipus)

    def deviceIterations(self, device_iterations: int) -> Options:
        assert device_iterations >= 1, "deviceIterations must be at least 1"
        return self._put(device_iterations=device_iterations)

    def setExecutionStrategy(self, strategy: Any) -> Options:
        assert isinstance(strategy, AnyStrategy), f"Unexpected type {type(strategy)} for option execution_strategy"
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> Options:
        for ipu, proportion in available_memory_proportion.items():
            assert ipu.startswith("IPU") and ipu[3:].isdigit(), f'a key is "IPU" and a number, not {ipu!r}'
            assert 0.0 < proportion <= 1.0, f"the available memory proportion of {ipu} is {proportion}, not in (0, 1]"
        by_ipu = {int(ipu[3:]): proportion for ipu, proportion in available_memory_proportion.items()}
        return self._put(available_memory_proportion=by_ipu)

    def replicationFactor(self, replication_factor: int) -> Options:
        assert replication_factor >= 1, "replicationFactor must be at least 1"
        return self._put(replication_factor=replication_factor)

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Options:
        return self._put(input_group_size=input_group_size, input_cgt=input_group_type)

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        return self._put(broadcast_buffers=broadcast_buffers)

    def logDir(self, log_dir: str) -> Options:
        return self._put(log_dir=log_dir)

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        self._values["max_repeat_logs"] = max_lines
        return self

    def modelName(self, name: str) -> Options:
        return self._put(model_name=name)

    def enableExecutableCaching(self, path: str) -> Options:
        self._popart.set("enableEngineCaching", True)
        self._popart.set("cachePath", path)
        return self

    def useIpuModel(self, use_model: bool) -> Options:
        return self._put(use_model=use_model)

    def connectionType(self, connection_type: ConnectionType) -> Options:
        return self._put(connection_type=connection_type.value)

    def syncPattern(self, sync_pattern: SyncPattern) -> Options:
        return self._put(sync_pattern=sync_pattern.value)

    def useIpuId(self, ipu_id: int) -> Options:
        return self._put(ipu_id=ipu_id)

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        return self._put(connection_type=ConnectionType.Never.value, ipu_version=ipu_version)

    def anchorTensor(
        self, short_name: str, long_name: str, output_mode: Any = None, output_return_period: Optional[int] = 1
    ) -> None:
        mode = OutputMode.Default if output_mode is None else output_mode
        self._values["anchored_tensors"][short_name] = [long_name, mode.value, output_return_period]

    def outputMode(self, output_mode: OutputMode, output_return_period: Optional[int] = None) -> Options:
        if output_mode == OutputMode.EveryN:
            fits = output_return_period is not None and output_return_period > 0
            assert fits, "EveryN needs a positive output_return_period"
        return self._put(output_mode=output_mode.value, output_return_period=output_return_period or 1)

    def defaultOutputMode(self) -> bool:
        return self.output_mode == OutputMode.Default.value

    def randomSeed(self, random_seed: int) -> Options:
        torch.manual_seed(random_seed)
        return self._put(random_seed=random_seed)

    def enableStableNorm(self, enabled: bool) -> Options:
        self._popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        self._popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        self._popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        wanted = {"autoReport.all": "true"}
        self._popart.setEngineOptions({**wanted, "autoReport.directory": profile_dir} if profile_dir else wanted)
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        self._popart.set("updatableNamedBuffers", buffers)
        return self

    def toDict(self) -> Dict[str, Any]:
        everything = super().toDict()
        for child in (self._training, self._precision, self._locations, self._distributed, self._jit):
            child.update(everything)
        everything.update(copy.deepcopy(self._popart.options))
        return everything

    def clone(self) -> Options:
        return copy.deepcopy(self)

    def __deepcopy__(self, memory: Dict[int, Any]) -> Options:
        other = type(self).__new__(type(self))
        memory[id(self)] = other
        for name, value in self.__dict__.items():
            object.__setattr__(other, name, copy.deepcopy(value, memory))
        other._freeze(False)
        return other

    def _freeze(self, frozen: bool = True) -> None:
        children = (self._popart, self._training, self._precision, self._locations, self._distributed, self._jit)
        for part in (self, *children):
            part._is_frozen = frozen

    def _put(self, **kwargs: Any) -> Options:
        self.createOrSet(**kwargs)
        return self
