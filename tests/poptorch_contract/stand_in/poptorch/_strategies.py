"""Execution strategies: which block belongs to which pipeline stage, and on which IPU a stage runs."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from poptorch._api import CLASSES, enforced
from poptorch.enums import AutoStage  # type: ignore[attr-defined]


@enforced("poptorch.Stage")
class Stage:
    """Blocks that run together, on the IPU `ipu()` if that is called."""

    def __init__(self, *block_ids: Any) -> None:
        assert all(isinstance(block, str) for block in block_ids), f"block ids are strings, not {block_ids}"
        self._blocks = list(block_ids)
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> List[str]:
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        self._ipu = ipu
        return self


@enforced("poptorch.Phase")
class Phase:
    """A phase of the phased strategies: it can be written down, but not run."""

    def __init__(self, *arg: Any) -> None:
        self.stages = list(arg)


@enforced("poptorch.PipelinedExecution")
class PipelinedExecution:
    """Stages that work at the same time on different micro-batches. Without arguments: AutoStage.SameAsIpu."""

    is_pipelined = True

    def __init__(self, *args: Any) -> None:
        self.auto: Optional[Any] = None
        self._placed: Dict[str, Tuple[int, Optional[int]]] = {}
        if not args or isinstance(args[0], AutoStage):
            assert len(args) <= 1, "an AutoStage stands alone"
            self.auto = args[0] if args else AutoStage.SameAsIpu
            return
        for number, arg in enumerate(args):
            stage = arg if isinstance(arg, Stage) else Stage(arg) if isinstance(arg, str) else Stage(*arg)
            for block in stage.blocks:
                assert block not in self._placed, f"{block} has already been assigned to another stage"
                self._placed[block] = (number, stage._ipu)

    def place(self, block_id: str, ipu_id: Optional[int], known: Dict[str, Tuple[int, int]]) -> Tuple[int, int]:
        """(stage, IPU) of a block that is used for the first time; `known` are the blocks before it."""
        if self.auto == AutoStage.SameAsIpu:
            assert ipu_id is not None, f"block {block_id}: an ipu_id is compulsory with AutoStage.SameAsIpu"
            return ipu_id, ipu_id
        if self.auto == AutoStage.AutoIncrement:
            stage, own = len(known) + 1, None
        else:
            assert block_id in self._placed, f"Unknown block {block_id}: it is in no stage of the strategy"
            stage, own = self._placed[block_id]
        return stage, own if own is not None else ipu_id if ipu_id is not None else stage

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 0}


@enforced("poptorch.ShardedExecution")
class ShardedExecution(PipelinedExecution):
    """One stage after the other: the same places, no pipeline."""

    is_pipelined = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 1}


@enforced("poptorch.ParallelPhasedExecution")
class ParallelPhasedExecution:
    """Can be set, but the stand-in does not compile it."""

    def __init__(self, *phases: Any) -> None:
        self.phases = list(phases)


@enforced("poptorch.SerialPhasedExecution")
class SerialPhasedExecution:
    """Can be set, but the stand-in does not compile it."""

    def __init__(self, *phases: Any) -> None:
        self.phases = list(phases)


AnyStrategy = (PipelinedExecution, ParallelPhasedExecution, SerialPhasedExecution)
for _class in (Stage, Phase, *AnyStrategy, ShardedExecution):
    CLASSES[_class.__name__] = _class
