"""Runs a forward once and writes its tensor ops down: a program that needs no Python of the user any more.

Every call of a torch function is one op: Python values in it (numbers, shapes, flags) are as they were that once.
Random ops are ops, too, and draw anew each time that the program runs.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set

import torch
from torch.overrides import TorchFunctionMode

from poptorch._arithmetic import compute, each_tensor
from poptorch._blocks import Place, Walk
from poptorch._errors import Error
from poptorch._unsupported import no_backward_of_ones_own, refuse_op


class Slot(int):
    """Stands for a tensor in the arguments of an op: an index into the values of a run."""


class Op(NamedTuple):
    """One call: `args` and `kwargs` with slots for tensors; `outputs` the slots of the tensors that it returns."""

    name: str
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    inputs: List[int]
    outputs: List[int]
    place: Place
    with_grad: bool


class Program(NamedTuple):
    """The ops of one micro-batch, and what their slots hold before: tensors of the model, inputs, constants."""

    ops: List[Op]
    model_slots: Dict[str, int]
    input_slots: List[int]
    constants: Dict[int, torch.Tensor]
    output: Any  # what forward returned, slots for tensors
    num_slots: int
    walk: Walk
    updated_buffers: Set[str]
    dtypes: List[torch.dtype]  # of each slot
    num_dims: List[int]


# While it is captured, a forward sees its tensors on an IPU.
_IPU = torch.device("ipu", 0)
_ON_DEVICE = {"device.__get__": _IPU, "is_cpu.__get__": False, "is_ipu.__get__": True, "get_device": 0}


class _Recorder(TorchFunctionMode):
    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk
        self.ops: List[Op] = []
        self.constants: Dict[int, torch.Tensor] = {}
        self._slot_of: Dict[int, Slot] = {}
        self._alive: List[torch.Tensor] = []  # so that no two tensors share an id

    def new_slot(self, tensor: torch.Tensor) -> Slot:
        slot = self._slot_of[id(tensor)] = Slot(len(self._alive))
        self._alive.append(tensor)
        return slot

    def slot(self, tensor: torch.Tensor) -> Slot:
        """The slot of a tensor. One that is neither input, nor of the model, nor computed here is a constant."""
        if id(tensor) not in self._slot_of:
            self.constants[self.new_slot(tensor)] = tensor.detach().clone()
        return self._slot_of[id(tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        refuse_op(name, args, kwargs)
        if name in _ON_DEVICE:
            return _ON_DEVICE[name]
        args, kwargs = _without_device((tuple(args), kwargs))
        if name == "__iter__":
            return iter(self._record("unbind", torch.Tensor.unbind, args, kwargs))
        return self._record(name, func, args, kwargs)

    def _record(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        inputs: List[int] = []

        def as_slot(tensor: torch.Tensor) -> Slot:
            inputs.append(self.slot(tensor))
            return self.slot(tensor)

        slotted = each_tensor(as_slot, (tuple(args), dict(kwargs)))  # before an op in place changes a constant
        result = compute(name, func, args, kwargs)
        tensors: List[torch.Tensor] = []
        each_tensor(tensors.append, result)
        if tensors or name == "__setitem__":
            # An op in place, or one that has nothing to do, returns what it was given.
            outputs = [int(self._slot_of.get(id(tensor), -1)) for tensor in tensors]
            outputs = [int(self.new_slot(tensor)) if slot < 0 else slot for slot, tensor in zip(outputs, tensors)]
            self.ops.append(Op(name, func, *slotted, inputs, outputs, self.walk.place, torch.is_grad_enabled()))
        return result


def _without_device(value: Any) -> Any:
    """Arguments of a call with the CPU, which computes here, in the place of an IPU."""
    if isinstance(value, (str, torch.device)):
        return torch.device("cpu") if str(value).split(":")[0] == "ipu" else value
    if type(value) in (tuple, list):
        return type(value)(_without_device(part) for part in value)
    if type(value) is dict:
        return {key: _without_device(part) for key, part in value.items()}
    return value


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"{func.__self__.__name__}.{name}"
    return name


@contextlib.contextmanager
def _all_indexing_is_seen() -> Iterator[None]:
    """torch 2.0 tells modes of x[1:, 0], but neither of x[1:] nor of x[mask]: their results would become constants."""
    plain = torch.Tensor.__getitem__

    def __getitem__(x: torch.Tensor, index: Any) -> torch.Tensor:  # noqa: N807  # the name under which it is recorded
        index = index if isinstance(index, tuple) else (index,)
        refuse_op("__getitem__", (x, index), {})
        return plain(x, index)

    torch.Tensor.__getitem__ = __getitem__  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del torch.Tensor.__getitem__


def capture(model: torch.nn.Module, strategy: Any, args: Any, kwargs: Any, training: bool) -> Program:
    """The program of model(*args, **kwargs), all tensors of which are of one micro-batch."""
    recorder = _Recorder(Walk(strategy))
    with _as_on_device(model), torch.random.fork_rng(devices=[]), no_backward_of_ones_own():
        tensors = named_tensors(model)
        model_slots = {name: int(recorder.new_slot(tensor)) for name, tensor in tensors.items()}
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        input_slots: List[int] = []
        each_tensor(lambda tensor: input_slots.append(int(recorder.new_slot(tensor))), (args, kwargs))
        Walk.current = recorder.walk
        try:
            with recorder, _all_indexing_is_seen(), torch.set_grad_enabled(training):
                result = model(*args, **kwargs)
        finally:
            Walk.current = None
        if any(tensor is not tensors.get(name) for name, tensor in named_tensors(model).items()):
            raise Error("forward put another tensor in the place of a buffer: buffers must be updated in place")
        updated = {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
        output = each_tensor(recorder.slot, result)
    ops, constants, count = recorder.ops, recorder.constants, len(recorder._alive)
    dtypes, num_dims = ([get(tensor) for tensor in recorder._alive] for get in (lambda t: t.dtype, lambda t: t.dim()))
    parts = (ops, model_slots, input_slots, constants, output, count, recorder.walk, updated)
    return Program(*parts, dtypes, num_dims)


def named_tensors(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Parameters, then buffers, by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextlib.contextmanager
def _as_on_device(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model's tensors hold copies, so that a forward that writes to a buffer leaves the host's alone."""
    tensors = list(named_tensors(model).values())
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.clone()
        yield
    finally:
        for tensor, original in zip(tensors, originals):
            tensor.data = original


def run(program: Program, values_of_model: Dict[str, torch.Tensor], inputs: List[torch.Tensor]) -> List[Any]:
    """The value of every slot after one micro-batch."""
    values: List[Any] = [None] * program.num_slots
    for name, slot in program.model_slots.items():
        values[slot] = values_of_model[name]
    for slot, tensor in program.constants.items():
        values[slot] = tensor
    for slot, tensor in zip(program.input_slots, inputs):
        values[slot] = tensor
    grad_enabled = torch.is_grad_enabled()
    for op in program.ops:
        with torch.set_grad_enabled(grad_enabled and op.with_grad):
            result = compute(op.name, op.func, *filled((op.args, op.kwargs), values))
        tensors: List[torch.Tensor] = []
        each_tensor(tensors.append, result)
        for slot, tensor in zip(op.outputs, tensors):
            values[slot] = tensor
    return values


def filled(value: Any, values: Any) -> Any:
    """`value` with `values[slot]` for every slot."""
    if isinstance(value, Slot):
        return values[value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(filled(part, values) for part in value))
    if isinstance(value, (tuple, list)):
        parts = [filled(part, values) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return type(value)((key, filled(part, values)) for key, part in value.items())
    return value
