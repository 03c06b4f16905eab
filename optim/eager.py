"""torch's optimisers without torch's compiler, which each of them would import when it is made and when it steps.

That import takes one to three seconds of every process, and no optimiser here is compiled. The methods are torch's own, below the
decorators that keep the compiler away from them (older torch, as 2.0.1, has none).
"""

from __future__ import annotations

import inspect
from typing import Type, TypeVar

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Type[Optimizer])


class EagerOptimizer(Optimizer):
    """The base of our own optimisers."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)


def eager(kind: Kind) -> Kind:
    """One of torch's optimisers under its own name, with the same steps."""
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (EagerOptimizer, kind), {"step": step, "__doc__": kind.__doc__})  # type: ignore[return-value]
