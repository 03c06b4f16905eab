"""Sums over the processes of a distributed run, which PopTorch makes between IPUs, without the host's libraries."""

from __future__ import annotations

from typing import Any, List

import torch

from poptorch._errors import Error


def count(options: Any) -> int:
    return options.Distributed.numProcesses if _are_joined(options) else 1


def index(options: Any) -> int:
    return options.Distributed.processId if _are_joined(options) else 0


def add_up(options: Any, tensors: List[torch.Tensor]) -> None:
    """Each tensor becomes its sum over the instances."""
    if _are_joined(options):
        from popdist._instances import group

        for tensor in tensors:
            group().sum_(tensor)


def meet(options: Any, what: str) -> None:
    """A program on the IPUs of all instances, which each of them has to start. Raises where one starts another."""
    if _are_joined(options):
        from popdist._instances import group

        told = torch.zeros(64, dtype=torch.uint8)
        told[: len(what)] = torch.tensor(list(what.encode()), dtype=torch.uint8)
        calls = {bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in group().gather(told)}
        if len(calls) > 1:
            raise Error(f"the instances start different programs: {sorted(calls)}")


def _are_joined(options: Any) -> bool:
    return getattr(type(options), "_joins_instances", False)
