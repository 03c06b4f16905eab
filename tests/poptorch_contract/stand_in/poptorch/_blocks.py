"""Blocks: where in a forward another IPU takes over."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch

from poptorch._api import checked, enforced
from poptorch._errors import Error


class Place(NamedTuple):
    """Where an op runs."""

    stage: int
    ipu: int


class Walk:
    """The blocks that one forward enters, in order. `place` is where its next op runs."""

    current: Optional[Walk] = None  # the walk of the forward that is being captured

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._known: Dict[str, Tuple[int, int]] = {}
        self._next_automatic_id = 0
        self._place: Optional[Place] = Place(0, 0)  # ops before the first block
        self.places: List[Place] = [Place(0, 0)]

    def begin(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        if user_id is None:
            user_id = str(self._next_automatic_id)
            self._next_automatic_id += 1
        if user_id not in self._known:
            self._known[user_id] = self._strategy.place(user_id, ipu_id, self._known)
        self._place = Place(*self._known[user_id])
        self.places.append(self._place)

    def end(self) -> None:
        self._place = None

    @property
    def place(self) -> Place:
        if self._place is None:
            raise Error("No active Block, all the ops must belong to a Block")
        return self._place

    @property
    def num_forward_stages(self) -> int:
        return 1 + sum(one.ipu != other.ipu for one, other in zip(self.places, self.places[1:]))

    @property
    def num_ipus(self) -> int:
        return max(place.ipu for place in self.places) + 1


@enforced("poptorch.Block")
class Block(torch.nn.Module):
    """Context manager: the ops inside are a block. After it there is none, until the next begins."""

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id, self._ipu_id = user_id, ipu_id

    @staticmethod
    def useAutoId() -> None:
        if Walk.current is not None:
            Walk.current._next_automatic_id = 0

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        if Walk.current is not None:
            Walk.current.begin(user_id, ipu_id)

    def __enter__(self) -> None:
        Block.start(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:  # noqa: A002
        if Walk.current is not None:
            Walk.current.end()


@checked("poptorch.BeginBlock")
def BeginBlock(layer_to_call: Any, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Any:
    """The same module, with a hook that begins a block before each forward."""
    if not isinstance(layer_to_call, torch.nn.Module):
        return _function_in_block(layer_to_call, user_id, ipu_id)
    if "_stand_in_block" in layer_to_call.__dict__:
        raise Error("module has already been assigned to a block.")

    def begin(module: torch.nn.Module, inputs: Any) -> None:
        Block.start(user_id, ipu_id)

    layer_to_call._stand_in_block = layer_to_call.register_forward_pre_hook(begin)
    return layer_to_call


@checked("poptorch.BlockFunction")
def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable[..., Any]:
    """Decorator of a function that begins a block."""
    return lambda function: _function_in_block(function, user_id, ipu_id)


def _function_in_block(function: Callable[..., Any], user_id: Optional[str], ipu_id: Optional[int]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        Block.start(user_id, ipu_id)
        return function(*args, **kwargs)

    return call


@checked("poptorch.removeBlocks")
def removeBlocks(module: torch.nn.Module) -> None:
    """Undoes BeginBlock on a module and all in it."""
    for part in module.modules():
        handle = part.__dict__.pop("_stand_in_block", None)
        if handle is not None:
            handle.remove()
