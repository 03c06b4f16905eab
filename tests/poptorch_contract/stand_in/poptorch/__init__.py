"""A stand-in for PopTorch 3.4, for tests alone: strict about the interface, emulating the device on the CPU."""

# Names are PopTorch's, and imported to be found here.
# ruff: noqa: N802, F401
from __future__ import annotations

import os
from typing import Any

from poptorch import enums, optim, stand_in
from poptorch._api import CLASSES, checked
from poptorch._blocks import BeginBlock, Block, BlockFunction, Walk, removeBlocks
from poptorch._data import AsynchronousDataAccessor, DataLoader
from poptorch._errors import ConfigFileError, Error, RecoverableError, UnrecoverableError, createPoptorchError
from poptorch._executor import PoplarExecutor
from poptorch._strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)
from poptorch._sub_options import TensorLocationSettings
from poptorch.enums import *  # noqa: F403
from poptorch.ops import (
    identity_loss,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from poptorch.options import Options

__version__ = "3.4.0"
CLASSES["Options"] = Options


@checked("poptorch.trainingModel")
def trainingModel(model: Any, options: Any = None, optimizer: Any = None) -> PoplarExecutor:
    model = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(model, options, True, __version__, optimizer, model)


@checked("poptorch.inferenceModel")
def inferenceModel(model: Any, options: Any = None) -> PoplarExecutor:
    model = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(model, options, False, __version__, None, model)


@checked("poptorch.ipuHardwareIsAvailable")
def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    return os.environ.get("POPTORCH_STAND_IN_HARDWARE") == "1"


@checked("poptorch.ipuHardwareVersion")
def ipuHardwareVersion() -> int:
    return 2 if ipuHardwareIsAvailable() else 0


@checked("poptorch.isRunningOnIpu")
def isRunningOnIpu() -> bool:
    return Walk.current is not None


@checked("poptorch.setLogLevel")
def setLogLevel(level: Any) -> None:
    names = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "WARN": 3, "ERR": 4, "OFF": 6}
    if level not in names and level not in names.values():
        raise ValueError(f"Invalid log level {level!r}")


__all__ = [name for name in globals() if not name.startswith("_") and name not in ("annotations", "Any", "os")]
