"""How the rows of a call are dealt out to micro-batches, and how micro-batches become the rows of an output."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import torch

from poptorch._arithmetic import each_tensor
from poptorch._errors import Error
from poptorch.enums import CommGroupType, ConnectionType, OutputMode  # type: ignore[attr-defined]

# (device iteration, accumulation step, replica)
Position = Tuple[int, int, int]
_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32, torch.bfloat16: torch.float32}
_NATIVE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32, torch.float16, torch.bool}
_DIFFERENT = (
    "This error occurred because the inputs passed at runtime don't match the inputs used to compile the model. "
    "Expected {expected}, got {got}."
)


class Layout:
    """Rows in the order [device iteration][accumulation][replica][micro], the replica fastest of the first three."""

    def __init__(self, options: Any, training: bool) -> None:
        self.device_iterations = options.device_iterations
        self.accumulation = options.Training.gradient_accumulation
        self.replicas = options.replication_factor
        self._group_size = options.input_group_size
        self._group_kind = options.input_cgt
        if self.replicas % self._group_size:
            raise Error(f"input groups of {self._group_size} do not divide {self.replicas} replicas")
        default = OutputMode.Final if training else OutputMode.All
        given = OutputMode(options.output_mode)
        self.mode = default if given == OutputMode.Default else given
        self.period = options.output_return_period
        if self.mode == OutputMode.EveryN and self.device_iterations % self.period:
            raise Error(f"the output period {self.period} does not divide {self.device_iterations} device iterations")

    @property
    def num_batches(self) -> int:
        return self.device_iterations * (self.replicas // self._group_size) * self.accumulation

    @property
    def positions(self) -> List[Position]:
        """All micro-batches of a call, in the order of the rows."""
        counts = (range(self.device_iterations), range(self.accumulation), range(self.replicas))
        return [(d, a, r) for d in counts[0] for a in counts[1] for r in counts[2]]

    def micro_batch(self, tensor: torch.Tensor, position: Position) -> torch.Tensor:
        """The rows of one micro-batch, as the device holds them."""
        iteration, step, replica = position
        groups = self.replicas // self._group_size
        consecutive = self._group_kind == CommGroupType.Consecutive
        group = replica // self._group_size if consecutive else replica % groups
        rows = tensor.shape[0] // self.num_batches
        start = ((iteration * self.accumulation + step) * groups + group) * rows
        return on_device(tensor[start : start + rows])

    def joined(self, outputs: Dict[Position, torch.Tensor]) -> torch.Tensor:
        """What the host gets of an output that every micro-batch computes."""
        parts = [outputs[position] for position in self._returned()]
        if self.mode == OutputMode.Sum:
            parts = [
                torch.stack([outputs[p] for p in self.positions if p[2] == replica]).sum(
                    0, dtype=outputs[0, 0, 0].dtype
                )
                for replica in range(self.replicas)
            ]
        if parts[0].dim():
            return narrowed(torch.cat(parts))
        return narrowed(torch.stack(parts) if len(parts) > 1 else parts[0].clone())

    def _returned(self) -> List[Position]:
        last = (self.device_iterations - 1, self.accumulation - 1)
        if self.mode == OutputMode.Final:
            return [position for position in self.positions if position[:2] == last]
        if self.mode == OutputMode.EveryN:
            return [position for position in self.positions if (position[0] + 1) % self.period == 0]
        return self.positions


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as the device has it. Its integers have 32 bits: 64 here, where torch's CPU ops ask for that, cut to 32."""
    if tensor.dtype == torch.int64:
        return tensor.to(torch.int32).to(torch.int64)
    return tensor.to(_NARROWED.get(tensor.dtype, tensor.dtype)).clone()


def narrowed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(_NARROWED.get(tensor.dtype, tensor.dtype))


class Inputs:
    """The form that the inputs had at compile time: structure, shapes, types and all that is no tensor."""

    def __init__(self, args: Any, kwargs: Any, layout: Layout) -> None:
        self._layout = layout
        self._form = _form((args, kwargs))
        tensors = tensors_of((args, kwargs))
        if not tensors:
            raise Error("a model needs at least one tensor as its input")
        for number, tensor in enumerate(tensors):
            rows = tensor.shape[0] if tensor.dim() else 0
            assert rows and rows % layout.num_batches == 0, (
                f"Invalid batch dimension: In the input {number} the batch dimension ({rows}) must be a multiple of "
                f"Options.deviceIterations({layout.device_iterations}) * Options.replicationFactor({layout.replicas}) * "
                f"Options.Training.gradientAccumulation({layout.accumulation}) = {layout.num_batches}"
            )
            if tensor.requires_grad:
                raise Error(f"input {number} requires a gradient, which PopTorch does not compute")
            if tensor.dtype not in _NATIVE and tensor.dtype not in _NARROWED:
                raise Error(f"input {number} has the unsupported type {tensor.dtype}")

    def check(self, args: Any, kwargs: Any) -> None:
        got = _form((args, kwargs))
        if got != self._form:
            raise Error(_DIFFERENT.format(expected=self._form, got=got))
        if any(tensor.requires_grad for tensor in tensors_of((args, kwargs))):
            raise Error("an input requires a gradient, which PopTorch does not compute")

    def micro_batch(self, args: Any, kwargs: Any, position: Position) -> Any:
        return each_tensor(lambda tensor: self._layout.micro_batch(tensor, position), (args, kwargs))


def tensors_of(value: Any) -> List[torch.Tensor]:
    found: List[torch.Tensor] = []
    each_tensor(found.append, value)
    return found


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), str(_NARROWED.get(value.dtype, value.dtype)))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, [_form(part) for part in value])
    if isinstance(value, dict):
        return ("dict", {key: _form(part) for key, part in value.items()})
    return ("constant", repr(value))


def is_offline(options: Any) -> bool:
    return options.connection_type == ConnectionType.Never.value
