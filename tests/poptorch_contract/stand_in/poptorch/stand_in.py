"""What tests ask the stand-in, and PopTorch does not have: where parameters lie, what was called, how often."""

from __future__ import annotations

import atexit
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from poptorch import _limits, _options_dict, _registry


class Report(NamedTuple):
    """Of one compiled executor. IPU numbers are those of one replica."""

    num_ipus: int  # reserved, for all replicas of this process
    num_stages: int  # of the pipeline; with the backward pass, in training
    ipu_of_parameter: Dict[str, int]  # where the first op that uses it runs
    stage_of_parameter: Dict[str, int]
    ipus_of_parameter: Dict[str, Set[int]]  # of all ops that use it
    checkpoints: Dict[int, int]  # recomputation checkpoints on each IPU
    op_names: List[str]  # of one micro-batch's forward
    attached: bool
    weight_updates: int
    calls: int
    loss_scales: List[float]  # one a micro-batch
    options: Dict[str, Any]
    constants: List[Tuple[int, ...]]  # shapes of tensors that are neither inputs, nor of the model, nor made in forward


def report(executor: Any) -> Report:
    program = executor._program
    executor._check_compiled()
    places = {name: [op.place for op in program.ops if slot in op.inputs] for name, slot in program.model_slots.items()}
    places = {name: found for name, found in places.items() if found}
    trainer = executor._trainer if executor._training else None
    return Report(
        num_ipus=executor._num_ipus,
        num_stages=_limits.num_stages(program, executor._training),
        ipu_of_parameter={name: found[0].ipu for name, found in places.items()},
        stage_of_parameter={name: found[0].stage for name, found in places.items()},
        ipus_of_parameter={name: {place.ipu for place in found} for name, found in places.items()},
        checkpoints=dict(Counter(op.place.ipu for op in program.ops if op.name == "checkpoint")),
        op_names=[op.name for op in program.ops],
        attached=executor.isAttachedToDevice(),
        weight_updates=trainer.num_updates if trainer else 0,
        calls=executor.stand_in_calls,
        loss_scales=list(trainer.loss_scales) if trainer else [],
        options=executor.options.toDict(),
        constants=[tuple(tensor.shape) for tensor in program.constants.values()],
    )


def executors() -> List[Any]:
    """All that this process has made since the last reset, the destroyed ones, too."""
    return list(_registry.EXECUTORS)


def option_calls() -> List[_options_dict.OptionCall]:
    """The setters of options that were called since the last reset, in order."""
    return list(_options_dict.CALLS)


def reset() -> None:
    """Forgets executors, the attached device and the log of options."""
    _registry.reset()
    _options_dict.CALLS.clear()


def _write_reports(path: Path) -> None:
    reports = [
        {"kind": "training" if executor._training else "inference", **report(executor)._asdict()}
        for executor in executors()
        if executor.isCompiled()
    ]
    calls = [call._asdict() for call in option_calls()]
    path.write_text(json.dumps({"executors": reports, "option_calls": calls}, default=_as_text, indent=1))


def _as_text(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


# For processes that a test starts: what they did is in this file once they have ended.
if "POPTORCH_STAND_IN_REPORT" in os.environ:
    atexit.register(_write_reports, Path(os.environ["POPTORCH_STAND_IN_REPORT"]))
